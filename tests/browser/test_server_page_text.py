"""The text of the server's page as it is read, copied, heard, and gone back in."""

import math

PROMPT = "The old house stood at the end of the lane, and"
GREEDY = {"tokens": 24, "temperature": 0}


def test_a_word_is_shaded_without_the_space_before_it(served, console):
    """So that a line breaks in the space, and neither ends nor begins with a sliver of shade."""
    page = console(size=(400, 900))
    page.write(PROMPT, **GREEDY)
    completion = served.model.complete(PROMPT, max_new_tokens=24)
    pieces = [served.model.prompting.tokenizer.piece(token) for token in completion.token_ids]
    shown = page.run("return [...document.querySelectorAll('.piece')].map(one => one.textContent)")
    assert sum(piece.startswith(" ") for piece in pieces) > 10
    assert shown == [piece.removeprefix(" ") for piece in pieces]
    assert page.text("#written") == completion.text
    boxes = page.run("return [...document.querySelectorAll('.piece')].map(one => one.getClientRects().length)")
    assert set(boxes) == {1}, "a token is on two lines"


def test_what_is_copied_is_the_text(served, console):
    page = console()
    page.write(PROMPT, **GREEDY)
    copied = page.run("getSelection().selectAllChildren(document.getElementById('sheet')); return `${getSelection()}`")
    assert copied == PROMPT + served.model.complete(PROMPT, max_new_tokens=24).text


def test_tokens_are_named_for_those_who_hear_them(served, console):
    page = console()
    page.write(PROMPT, **GREEDY)
    found = served.model.complete(PROMPT, max_new_tokens=24, logprobs=0).logprobs
    tokens = [served.model.prompting.tokenizer.piece(each.token_id) for each in found]
    labels = page.run("return [...document.querySelectorAll('.piece')].map(one => one.ariaLabel)")
    names = [label.rsplit(", ", 1) for label in labels]
    assert [name for name, _ in names] == [token.replace(" ", "·").replace("\n", "↵") for token in tokens]
    told = [float(share.removesuffix("\u00a0%")) for _, share in names]
    assert max(abs(one - 100 * math.exp(each.logprob)) for one, each in zip(told, found, strict=True)) < 0.011


def test_only_the_beginning_and_the_end_are_spoken(console):
    """A region that spoke each token of a stream would never be silent."""
    page = console()
    page.run("""window.spoken = 0;
        new MutationObserver(() => { spoken += 1 }).observe(document.getElementById("status"), {childList: true})""")
    page.write(PROMPT, **GREEDY)
    assert page.run("return spoken") == 2
    assert page.run("return document.querySelectorAll('[role=status], [role=alert], [aria-live]').length") == 2


def test_back_goes_through_all_that_was_there(console):
    page = console()

    def state():
        return page.text("#sheet"), page.find("#prompt").get_property("value")

    page.write(PROMPT, **GREEDY)
    states = [state()]
    for position in (9, 4, 12):
        page.piece(position).click()
        page.browser.find_elements("css selector", "#rows button")[1].click()
        page.until_done()
        states.append(state())
    assert len(set(states)) == 4
    for expected in states[-2::-1]:
        page.find("#back").click()
        assert state() == expected
    assert not page.find("#back").is_displayed()
