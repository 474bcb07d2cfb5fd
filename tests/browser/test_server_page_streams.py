"""How the server's page reads a stream: split anywhere, in parts of characters, broken off, hostile, long."""

import asyncio
import json
import math

import pytest
from starlette.responses import StreamingResponse
from starlette.routing import Route

from runtime.server.page.document import source

HOSTILE = [
    "<script>injected=1</script>",
    "</script><img src=x onerror=injected=1>",
    "&amp;",
    "\"'`${injected=1}",
    "\u202eright to left",
    "\x00\x07",
    "a\u2028b",
    "\n\n",
    "<!--",
    "'><style>*{display:none}</style>",
    "שלום",
    "__proto__",
    "7",
]
READ = f"""{source("events.js")}
    const [chunks, done] = arguments;
    const bytes = chunks.map(chunk => Uint8Array.from(chunk));
    const body = new ReadableStream({{
        pull(to) {{ bytes.length ? to.enqueue(bytes.shift()) : to.close(); }}
    }});
    (async () => {{
        const found = [];
        for await (const event of eventsOf(body)) found.push(event);
        return found;
    }})().then(done, error => done(error.message));"""


def event(tokens, text, offsets, *, logprobs=None, tops=None, reason=None):
    """One of the server's events."""
    chances = logprobs or [-1.0] * len(tokens)
    told = {
        "tokens": tokens,
        "token_logprobs": chances,
        "top_logprobs": tops or [{token: chance} for token, chance in zip(tokens, chances, strict=True)],
        "text_offset": offsets,
    }
    return {"choices": [{"index": 0, "text": text, "logprobs": told, "finish_reason": reason}]}


def lines(*events, done=True):
    return [f"data: {json.dumps(each)}\n\n".encode() for each in events] + [b"data: [DONE]\n\n"] * done


@pytest.fixture
def telling(serve):
    """A server whose completions are the given chunks, whatever is asked for."""

    def make(chunks):
        live = serve()

        async def say():
            for chunk in chunks:
                yield chunk
                await asyncio.sleep(0)

        async def complete(_):
            return StreamingResponse(say(), media_type="text/event-stream")

        live.app.router.routes.insert(0, Route("/v1/completions", complete, methods=["POST"]))
        return live

    return make


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_may_be_split_anywhere(console, end):
    page = console()
    told = [{"text": "é🙂"}, {"text": "two\ndata: no event"}]
    written = "".join(f"data: {json.dumps(each, ensure_ascii=False)}{end}{end}" for each in told)
    whole = [*f": a comment{end}{end}{written}data: [DONE]{end}{end}".encode()]
    for at in range(len(whole)):
        assert page.browser.execute_async_script(READ, [whole[:at], whole[at:]]) == told
    assert page.browser.execute_async_script(READ, [[byte] for byte in whole]) == told
    assert page.browser.execute_async_script(READ, [whole[:-20]]) == "the answer broke off before its end"


def test_tokens_that_write_one_character_are_one_piece(telling, console):
    """An emoji is one character of the offsets, two of JavaScript's, and here three tokens."""
    tokens = ["A", r"\xf0\x9f", r"\x99", r"\x82", " ok"]
    chances = [math.log(share) for share in (0.5, 0.8, 0.5, 0.25, 0.9)]
    told = event(tokens, "A🙂 ok", [0, 1, 1, 1, 2], logprobs=chances)
    page = console(telling(lines(told, event([], "", [], reason="stop"))))
    page.write("")
    assert page.run("return [...document.querySelectorAll('.piece')].map(one => one.textContent)") == ["A", "🙂", "ok"]
    assert page.text("#written") == "A🙂 ok"
    shares = page.run("return [...document.querySelectorAll('.piece')].map(one => one.ariaLabel.split(', ')[1])")
    assert shares == ["50.00\u00a0%", "10.00\u00a0%", "90.00\u00a0%"]


def test_a_part_of_a_character_cannot_be_chosen(telling, console):
    told = event(["a"], "a", [0], tops=[{"a": -1.0, r"\xe2\x80": -2.0, "7": -1.5}], reason="length")
    page = console(telling(lines(told)))
    page.write("")
    page.hover(page.piece(0))
    page.within(page.choices_shown)
    rows = (
        "return [...document.querySelectorAll('#rows button')].map(one => [one.firstChild.textContent, one.disabled])"
    )
    assert page.run(rows) == [["a", False], ["7", False], [r"\xe2\x80", True]]


def test_texts_are_texts_and_nothing_else(telling, console):
    offsets = [sum(map(len, HOSTILE[:i])) for i in range(len(HOSTILE))]
    tops = [{other: -1.0 - i for i, other in enumerate(HOSTILE)} for _ in HOSTILE]
    told = event(HOSTILE, "".join(HOSTILE), offsets, tops=tops, reason="stop")
    page = console(telling(lines(told)))
    page.write(HOSTILE[0])
    assert page.text("#before") == HOSTILE[0]
    assert page.run("return [...document.querySelectorAll('.piece')].map(one => one.textContent)") == HOSTILE
    page.hover(page.piece(0), 1 - page.piece(0).size["width"] // 2)
    page.within(page.choices_shown)
    assert page.run("return document.querySelectorAll('#rows li').length") == len(HOSTILE)
    assert page.run("return window.injected ?? null") is None
    assert page.run("return document.querySelectorAll('script, style, img').length") == 3
    assert page.log() == []


def test_the_name_of_a_model_is_a_text(serve, console):
    page = console(serve(served_name=HOSTILE[1]))
    assert page.text("h1") == page.browser.title == HOSTILE[1]
    assert page.run("return window.injected ?? null") is None
    page.write("It", tokens=2, temperature=0)
    assert not page.find("#failure").is_displayed()


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        (lines({"error": {"message": "the server is out of memory"}}, done=False), "the server is out of memory"),
        (lines(done=False), "the answer broke off before its end"),
    ],
    ids=["error", "broken off"],
)
def test_a_stream_that_fails_keeps_what_was_written(telling, console, chunks, message):
    page = console(telling([*lines(event(["so"], "so", [0]), done=False), *chunks]))
    page.write("")
    assert page.text("#failure") == message
    assert page.text("#written") == "so"
    assert page.find("#generate").is_displayed()


def test_a_thousand_tokens_cost_no_more_each_than_ten(telling, console):
    """What an event changes does not grow with the text; how fast that is depends on the machine."""
    told = [event([" word"], " word", [5 * i]) for i in range(1000)]
    page = console(telling(lines(*told, event([], "", [], reason="length"))))
    page.run("""window.changes = 0;
        new MutationObserver(records => { changes += records.length }).observe(document.body,
            {subtree: true, childList: true, attributes: true, characterData: true});""")
    page.write("")
    assert page.text("#written") == " word" * 1000
    assert page.run("return changes") < 1000 * 16
    page.run("changes = 0")
    page.hover(page.piece(20))
    page.within(page.choices_shown)
    assert page.run("return changes") < 40
