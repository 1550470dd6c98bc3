"""VQA accuracy: what LLaVA's m4c evaluator makes of answers, case by case."""

import pytest

from components.evaluate.vqa import CONTRACTIONS, accuracy, normalized

# The published table of contractions, without entries that a lower-case text never meets or that change nothing.
TABLE = """
aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've couldnt've=couldn't've
didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've hadn'tve=hadn't've hasnt=hasn't havent=haven't
hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd howll=how'll hows=how's isnt=isn't itd=it'd itd've=it'd've
it'dve=it'd've itll=it'll maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've mightve=might've
mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't ow's'at='ow's'at
'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've shouldve=should've shouldnt=shouldn't
shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd somebodyd've=somebody'd've
somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's someoned=someone'd someoned've=someone'd've
someone'dve=someone'd've someonell=someone'll someones=someone's somethingd=something'd somethingd've=something'd've
something'dve=something'd've somethingll=something'll thats=that's thered=there'd thered've=there'd've
there'dve=there'd've therere=there're theres=there's theyd=they'd theyd've=they'd've they'dve=they'd've theyll=they'll
theyre=they're theyve=they've twas='twas wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've werent=weren't
whatll=what'll whatre=what're whats=what's whatve=what've whens=when's whered=where'd wheres=where's whereve=where've
whod=who'd whod've=who'd've who'dve=who'd've wholl=who'll whos=who's whove=who've whyll=why'll whyre=why're whys=why's
wont=won't wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll
y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've
you'dve=you'd've youll=you'll youre=you're youve=you've
"""


def test_the_contractions_are_those_of_the_published_table():
    assert dict(entry.split("=") for entry in TABLE.split()) == CONTRACTIONS


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("Yes", "yes"),
        ("a dog", "dog"),
        ("The two cats", "2 cats"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("1,000", "1000"),
        ("the dog's bone", "dog 's bone"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("t-shirt", "t shirt"),
        ("t- shirt", "t shirt"),
        ("half- way t-shirt", "half way tshirt"),
        ("half -way t-shirt", "half way tshirt"),
        ("x/-y c-d", "x y c d"),
        ("an apple", "apple"),
        ("3.5", "3.5"),
        ("mr. smith.", "mr smith"),
        ("5.", "5"),
        ("what?", "what"),
        ("line\nbreak\ttab", "line break tab"),
        ("  10:30 AM ", "10:30 am"),
        ("a", ""),
        ("Ten", "10"),
        ("." * 33, "."),
    ],
)
def test_normal_form(answer, wanted):
    assert normalized(answer) == wanted


@pytest.mark.parametrize("mark", list(';/[]"{}()=+\\_-><@`!'))
def test_each_mark_parts_words_or_goes(mark):
    """It becomes a blank, but nothing in a text where a blank stands beside it anywhere."""
    assert (normalized(f"x{mark}y"), normalized(f"x{mark}y {mark}z")) == ("x y", "xy z")


@pytest.mark.parametrize("mark", list(":'*#%&$"))
def test_other_marks_stay(mark):
    assert normalized(f"x{mark}y") == f"x{mark}y"


def test_numbers():
    words = "none zero one two three four five six seven eight nine ten eleven"
    assert normalized(words) == "0 0 1 2 3 4 5 6 7 8 9 10 eleven"


def test_fewer_people():
    """Of five, two agree: three times 2/3 and twice 1/3 over five."""
    assert accuracy("red", ["red", "red", "x", "y", "z"]) == pytest.approx(8 / 15)


@pytest.mark.parametrize(
    ("agreeing", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)], ids=lambda value: str(value)
)
def test_the_share_of_people_who_agree(agreeing, wanted):
    """Leaving each of ten out: 1 agrees: 9 * 1/3; 2 agree: 8 * 2/3 + 2 * 1/3; 3 agree: 7 * 1 + 3 * 2/3."""
    people = ["red"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert accuracy("red", people) == pytest.approx(wanted)
