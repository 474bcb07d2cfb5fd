"""The server's page, worked as a person would, against a live server and the model that it serves."""

import math
import re
import time

import pytest

from runtime.graphs.slots import HostSlots

PROMPT = "The old house stood at the end of the lane, and"
SAMPLED = {"tokens": 30, "temperature": 0.9, "topP": 0.9, "seed": 7}
GREEDY = {"tokens": 24, "temperature": 0}
CHOICES = """return [...document.querySelectorAll("#rows button")].map(row =>
    [row.querySelector(".token").textContent, row.querySelector(".share").textContent])"""


def in_python(settings):
    """Settings of the page as options of Model.complete."""
    names = {"tokens": "max_new_tokens", "temperature": "temperature", "topP": "top_p", "seed": "seed"}
    sampled = settings["temperature"] > 0
    return {names[name]: value for name, value in settings.items() if sampled or name in ("tokens", "temperature")}


def shown_token(model, token_id):
    return model.prompting.tokenizer.piece(token_id).replace(" ", "·").replace("\n", "↵")


def choose(page, number):
    page.browser.find_elements("css selector", "#rows button")[number].click()


def eventually(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def cancelled(live):
    """How many texts the server has ended before their ends."""
    found = re.search(r'gpt2_onnx_texts_total\{reason="cancelled"\} (\S+)', live.client.get("/metrics").text)
    return float(found[1]) if found else 0


@pytest.fixture
def likeliest(served):
    """The likeliest tokens at a position of a completion with their probabilities, and the one that was chosen."""

    def at(text, settings, position):
        found = served.model.complete(text, logprobs=5, **in_python(settings)).logprobs[position]
        chances = dict(found.top) | {found.token_id: found.logprob}
        order = sorted(chances, key=lambda token: -chances[token])
        return [(shown_token(served.model, token), 100 * math.exp(chances[token])) for token in order]

    return at


def assert_shown(rows, expected):
    assert [token for token, _ in rows] == [token for token, _ in expected]
    shares = [float(share.removesuffix("\u00a0%")) for _, share in rows]
    assert shares == pytest.approx([share for _, share in expected], abs=0.011)  # two digits, of floats in a batch


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY], ids=["sampled", "greedy"])
def test_the_text_is_the_models(served, console, settings):
    page = console()
    page.write(PROMPT, **settings)
    expected = served.model.complete(PROMPT, **in_python(settings)).text
    assert page.text("#before") == PROMPT
    assert page.text("#written") == expected
    assert f"{settings['tokens']} tokens in " in page.text("#status")
    assert page.log() == []


def test_without_a_seed_one_is_drawn_and_told(served, console):
    page = console()
    page.write(PROMPT, **SAMPLED | {"seed": ""})
    seed = int(page.text("#status").split("seed ")[1])
    assert page.text("#written") == served.model.complete(PROMPT, **in_python(SAMPLED | {"seed": seed})).text


def test_an_empty_prompt_begins_a_text(served, console):
    page = console()
    page.write("", **GREEDY)
    assert page.text("#written") == served.model.complete("", **in_python(GREEDY)).text


def test_each_token_is_shaded_by_its_probability(served, console):
    page = console()
    page.write(PROMPT, **SAMPLED)
    chances = [
        math.exp(each.logprob) for each in served.model.complete(PROMPT, logprobs=0, **in_python(SAMPLED)).logprobs
    ]
    levels = page.run("return [...document.querySelectorAll('.piece')].map(one => Number(one.dataset.level))")
    assert [abs(level - 7 * math.sqrt(chance)) < 0.51 for level, chance in zip(levels, chances, strict=True)]
    labels = page.run("return [...document.querySelectorAll('.piece')].map(one => one.ariaLabel)")
    told = [float(label.rsplit(", ", 1)[1].removesuffix("\u00a0%")) for label in labels]
    assert told == pytest.approx([100 * chance for chance in chances], abs=0.011)


def test_shades_are_darker_where_probabilities_are_higher(console, luminance):
    lights = [luminance(fill) for fill in console().fills(".scale li")]
    assert len(set(lights)) == 8
    assert lights == sorted(lights, reverse=True)


@pytest.mark.parametrize("position", [0, 7, 29])
def test_a_pointer_shows_what_could_have_come_instead(console, likeliest, position):
    page = console()
    page.write(PROMPT, **SAMPLED)
    page.hover(page.piece(position))
    page.within(page.choices_shown)
    assert_shown(page.run(CHOICES), likeliest(PROMPT, SAMPLED, position))
    page.hover(page.find("h1"))
    page.within(lambda: not page.choices_shown())


def test_a_finger_shows_them_too(console, likeliest):
    page = console(size=(400, 800))
    page.write(PROMPT, **SAMPLED)
    page.run("document.querySelectorAll('.piece')[3].scrollIntoView({block: 'center'})")
    place = page.run(
        "const at = document.querySelectorAll('.piece')[3].getBoundingClientRect(); return [at.x + 2, at.y + 9]"
    )
    touch = page.browser.execute_cdp_cmd
    touch("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        point = [{"x": place[0], "y": place[1]}]
        touch("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": point})
        touch("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.within(page.choices_shown)
    finally:
        touch("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert_shown(page.run(CHOICES), likeliest(PROMPT, SAMPLED, 3))


def test_a_choice_takes_the_place_and_the_text_goes_on_from_there(served, console):
    page = console()
    page.write(PROMPT, **SAMPLED)
    first = served.model.complete(PROMPT, logprobs=5, **in_python(SAMPLED))
    page.hover(page.piece(6))
    page.within(page.choices_shown)
    instead = next(i for i, (token, _) in enumerate(first.logprobs[6].top) if token != first.logprobs[6].token_id)
    choose(page, instead)
    page.until_done()
    decode = served.model.prompting.tokenizer.decode
    ids = [each.token_id for each in first.logprobs[:6]] + [first.logprobs[6].top[instead][0]]
    asked = PROMPT + decode(ids)
    assert page.find("#prompt").get_attribute("value") == asked
    assert page.text("#sheet") == asked + served.model.complete(asked, **in_python(SAMPLED)).text
    page.find("#back").click()
    assert page.text("#sheet") == PROMPT + first.text
    assert page.find("#prompt").get_attribute("value") == PROMPT
    assert not page.find("#back").is_displayed()
    assert page.log() == []


def test_all_goes_by_keys_alone(served, console):
    page = console()
    page.browser.switch_to.active_element.send_keys(PROMPT)  # the page begins in the prompt
    page.run(
        "for (const [name, value] of Object.entries(arguments[0])) document.forms[0].elements[name].value = value",
        GREEDY,
    )
    page.chord("CONTROL", "ENTER")
    page.until_done()
    first = served.model.complete(PROMPT, logprobs=5, **in_python(GREEDY))
    page.tab_to("piece")
    page.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_LEFT")
    page.within(page.choices_shown)
    assert page.run("return document.activeElement === document.querySelectorAll('.piece')[1]")
    page.press("ESCAPE")
    assert not page.choices_shown()
    page.press("ENTER", "ARROW_DOWN", "ARROW_DOWN", "ARROW_UP")
    page.press("ESCAPE")
    assert page.run("return document.activeElement === document.querySelectorAll('.piece')[1]")
    page.press("ENTER", "ARROW_DOWN", "ENTER")
    page.until_done()
    asked = PROMPT + served.model.prompting.tokenizer.decode([first.token_ids[0], first.logprobs[1].top[1][0]])
    assert page.text("#sheet") == asked + served.model.complete(asked, **in_python(GREEDY)).text
    assert page.focused("class") == "piece", "the focus is lost"
    for part in ("look-inside", "prompt", "generate", "back"):
        page.tab_to(part)
    page.press("ENTER")
    assert page.text("#sheet") == PROMPT + first.text


def test_stop_frees_the_slot(serve, console, monkeypatch):
    live, run = serve(slots=1), HostSlots.run
    monkeypatch.setattr(HostSlots, "run", lambda slots, works: time.sleep(0.02) or run(slots, works))  # time to click
    page = console(live)
    page.write(PROMPT, wait=False, tokens=480, temperature=0)
    page.within(lambda: len(page.text("#written")) > 20)
    page.find("#stop").click()
    eventually(lambda: cancelled(live) == 1 and not live.model.loop.busy)
    page.until_done()
    monkeypatch.undo()
    stopped = int(page.text("#status").split("after ")[1].split(" ")[0])
    assert 0 < stopped < 480
    assert live.model.complete(PROMPT, max_new_tokens=480).text.startswith(page.text("#written"))
    page.write(PROMPT, tokens=3, temperature=0)
    assert page.text("#written") == live.model.complete(PROMPT, max_new_tokens=3).text
    assert page.log() == []


def test_escape_stops_and_a_page_that_is_left_frees_its_slot_too(serve, console):
    live = serve(slots=1)
    page = console(live)
    for number, leave in enumerate((lambda: page.press("ESCAPE"), lambda: page.browser.get("about:blank")), 1):
        page.write(PROMPT, wait=False, tokens=480, temperature=0)
        page.within(lambda: len(page.text("#written")) > 20)
        leave()
        eventually(lambda number=number: cancelled(live) == number and not live.model.loop.busy)


def test_a_key_is_asked_for_only_after_a_401_and_kept_nowhere(serve, console, monkeypatch):
    monkeypatch.setenv("PAGE_KEYS", "correct-horse")
    live = serve(api_key_env="PAGE_KEYS")
    page = console(live)
    assert not page.find("#key").is_displayed()
    page.write(PROMPT, **GREEDY)
    assert page.text("#failure").startswith("an API key is needed")
    assert page.focused("id") == "key"
    for key, works in (("wrong-battery", False), ("correct-horse", True)):
        page.find("#key").clear()
        page.find("#key").send_keys(key)
        page.press("ENTER")
        page.until_done()
        assert page.find("#failure").is_displayed() == (not works)
    assert page.text("#written") == live.model.complete(PROMPT, **in_python(GREEDY)).text
    page.look_inside()
    assert page.text("h1") == "Inside novelist"
    page.close_tab()
    assert page.run("return [localStorage.length, sessionStorage.length, document.cookie, location.search]") == [
        0,
        0,
        "",
        "",
    ]
    page.browser.refresh()
    assert not page.find("#key").is_displayed()


def test_look_inside_is_of_the_whole_text_in_a_tab_of_its_own(served, console):
    page = console()
    page.write(PROMPT, **GREEDY)
    whole = page.text("#sheet")
    page.look_inside()
    tokens = page.run("return [...document.querySelectorAll('#tokens [role=option]')].map(one => one.textContent)")
    assert tokens == list(served.model.inspect(whole).tokens)
    assert page.run("return window.opener") is None
    assert page.log() == []
    page.close_tab()
    assert page.text("#sheet") == whole


def test_look_inside_a_long_text_shows_its_end_and_says_so(served, console):
    page = console()
    page.write("So it goes on. " * 70, **GREEDY)
    ids = served.model.encode(page.text("#sheet"))
    assert len(ids) > 256
    page.look_inside()
    count = "return document.querySelectorAll('#tokens [role=option]').length"
    assert page.run(count) == 256
    page.close_tab()
    assert page.text("#status") == f"Inside are the last 256 of {len(ids)} tokens"


def test_an_error_of_the_server_is_one_line(served, console):
    page = console()
    prompt = "so much text " * 400
    page.write(prompt, **GREEDY)
    told = served.complete(prompt=prompt, max_tokens=24).json()["error"]["message"]
    assert page.text("#failure") == told
    assert "\n" not in told
    page.write(PROMPT, **GREEDY)
    assert not page.find("#failure").is_displayed()


def test_a_server_that_is_gone_is_said_to_be(serve, console):
    page = console(serve())
    page.run("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    page.write(PROMPT, **GREEDY)
    assert page.text("#failure") == "the server does not answer: Failed to fetch"
    assert page.find("#generate").is_displayed()


@pytest.mark.parametrize("most", [0, 2])
def test_it_asks_for_no_more_than_its_server_gives(serve, console, most):
    live = serve(max_logprobs=most, max_tokens=9)
    page = console(live)
    assert page.find("[name=tokens]").get_attribute("value") == "9"
    assert page.find("[name=tokens]").get_attribute("max") == "9"
    page.write(PROMPT, **SAMPLED | {"tokens": 9})
    assert page.text("#written") == live.model.complete(PROMPT, **in_python(SAMPLED | {"tokens": 9})).text
    page.hover(page.piece(4))
    page.within(page.choices_shown)
    assert len(page.run(CHOICES)) in (max(most, 1), most + 1)
