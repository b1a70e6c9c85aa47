"""Seeded texts for benchmarks and tests: anybody can make them, no download.

`biomedical`: English reasoning traces and answers, as medical corpora have them. Words are drawn
with Zipf's frequencies from some 400 common ones, and from terms composed of Greek and Latin parts
(some 60,000 different ones), so that the tail is as long as a real text's; numbers, doses,
abbreviations, citations, lists, and the tags of a trace.

`mixed`: what is hard for a tokenizer: LaTeX, units, Greek, Cyrillic, Chinese, Japanese, Korean,
Arabic, Devanagari, Thai, emoji of several code points, accents composed and combining, tables,
runs of blanks and line breaks, and characters that tokenizers are known to differ on.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable
from itertools import accumulate

DOCUMENT_CHARACTERS = (
    400,
    3600,
)  # of the biomedical texts; an answer of MedQuAD has 1,300 on average

_COMMON = (  # noqa: SIM905
    "the of and in to a is with for or be that are as by from may this it can at which not have an "
    "on was these disease patients patient treatment symptoms has people cause cells also other "
    "who one blood more cancer when your signs condition gene than most if disorder will some "
    "syndrome include no children risk been normal such between body their causes but normal were "
    "used you family information about how all help there health tissue skin each into known heart "
    "brain bone muscle risk age years after before during both only two usually often called rare "
    "diagnosis tests test result therapy surgery drug dose small large left right upper lower "
    "lateral medial anterior posterior axial coronal sagittal image images shows seen finding "
    "findings consistent suggests likely unlikely therefore because however although since while "
    "within without region area lesion mass opacity effusion fracture density signal contrast "
    "enhancement tumor nodule lung liver kidney spleen bowel chest abdomen pelvis spine skull "
    "option answer question correct first second third next step consider rule out compare versus "
    "increased decreased elevated reduced mild moderate severe acute chronic bilateral unilateral "
    "focal diffuse multiple single primary secondary benign malignant infection inflammation "
    "inheritance autosomal recessive dominant mutation mutations protein proteins chromosome "
    "pressure disease's patient's doesn't isn't can't it's won't we're they've I'd you'll "
    "history presentation clinical laboratory radiograph ultrasound tomography magnetic resonance "
    "pain fever cough weakness fatigue nausea vomiting headache swelling loss growth weight time"
).split()
_HEADS = (  # noqa: SIM905
    "cardio neuro hepato nephro gastro entero osteo chondro myo angio hemato leuko erythro thrombo "
    "adeno lipo fibro cyto histo dermato ophthalmo oto rhino laryngo broncho pneumo pleuro thoraco "
    "encephalo meningo myelo arthro spondylo cranio cephalo hystero oophoro salpingo orchi "
    "prostato pyelo uretero cysto chole pancreato spleno lympho immuno onco carcino sarco "
    "melano xantho hyper hypo micro macro pseudo peri para endo epi intra trans"
).split()
_MIDDLES = (  # noqa: SIM905
    "a o i vaso thrombo plasti tropho megalo sclero steno lytic genic cyto blasto vasculo"
).split()
_TAILS = (  # noqa: SIM905
    "itis osis oma pathy ectomy otomy plasty scopy gram graphy emia uria algia megaly malacia "
    "sclerosis stenosis trophy plasia lysis genesis cyte blast penia philia rrhea rrhage ptosis "
    "logical therapy tic al ary ic ous mab nib pril sartan statin azole mycin cillin"
).split()
_UNITS = (  # noqa: SIM905
    "mg/dL mmol/L mg/kg mL/min mmHg µg/L ng/mL IU/L U/L cm mm kg/m² Gy keV Hz % °C g/L mEq/L bpm"
).split()
_SHORT = (  # noqa: SIM905
    "MRI CT PET-CT EEG ECG COPD HIV DNA RNA IL-6 TNF-α HbA1c FLAIR T1 T2-weighted ADC BRCA1 TP53 "  # noqa: RUF001
    "EGFR CD20 HLA-B27 p53 WHO ICU e.g. i.e. vs. (Fig. [12] et al., 2021 p<0.05 n=24 95%"
).split()


def _terms(rng: random.Random) -> list[str]:
    made: set[str] = set()
    while len(made) < 60_000:
        parts = [rng.choice(_HEADS), rng.choice(_MIDDLES), rng.choice(_HEADS), rng.choice(_TAILS)]
        for at, share in ((2, 0.15), (1, 0.5)):
            if rng.random() > share:
                del parts[at]
        made.add("".join(parts))
    terms = sorted(made)
    rng.shuffle(terms)
    return terms


def _zipf(words: list[str], exponent: float) -> list[float]:
    return list(accumulate(1.0 / (rank + 2) ** exponent for rank in range(len(words))))


def biomedical(size: int, seed: int = 1) -> list[str]:
    """Documents of together at least `size` UTF-8 bytes; the same for the same arguments."""
    rng = random.Random(seed)
    terms = _terms(random.Random(0))
    common_weights, term_weights = _zipf(_COMMON, 0.9), _zipf(terms, 0.8)

    def sentence() -> str:
        count = rng.randint(6, 24)
        words = rng.choices(_COMMON, cum_weights=common_weights, k=count)
        for term in rng.choices(terms, cum_weights=term_weights, k=count // 14):
            words[rng.randrange(count)] = term
        if rng.random() < 0.35:
            number = f"{rng.uniform(0, 300):.{rng.randint(0, 2)}f}"
            words.insert(rng.randrange(count), f"{number} {rng.choice(_UNITS)}")
        if rng.random() < 0.3:
            words.insert(rng.randrange(count), rng.choice(_SHORT))
        if rng.random() < 0.3:
            words[rng.randrange(count)] += ","
        if rng.random() < 0.1:
            words.insert(0, rng.choice(["However,", "Therefore,", "In contrast,", "Note that"]))
        text = " ".join(words)
        return text[0].upper() + text[1:] + rng.choice([".", ".", ".", ".", "?", ":", ";"])

    def document() -> str:
        target = rng.randint(*DOCUMENT_CHARACTERS)
        parts = [f"{sentence()}\nA. {rng.choice(terms)}\nB. {rng.choice(terms)}\n\n<think>"]
        while sum(map(len, parts)) < target:
            joint = rng.choice([" ", " ", " ", " ", "\n", "\n\n", "\n- "])
            parts.append(sentence() + joint)
        parts.append(f"</think>\n<answer>{rng.choice('ABCD')}</answer>")
        return "".join(parts)

    return _until(size, document)


_WORDS = {
    "greek": "η καρδιά του ασθενούς είναι φυσιολογική σύνδρομο θεραπεία διάγνωση αίμα ήπαρ",
    "cyrillic": "рентген лёгких показал очаговое затемнение в верхней доле правого лёгкого",
    "arabic": "يظهر التصوير المقطعي كتلة في الفص العلوي من الرئة اليمنى",
    "hindi": "रोगी को बुखार और खांसी है छाती का एक्स रे सामान्य",
    "thai": "ผู้ป่วยมีไข้และไอ ภาพถ่ายรังสีทรวงอกปกติ",
    "french": "l'échographie révèle un épanchement péricardique modéré à gauche, où l'œdème naît",
    "german": "die Röntgenaufnahme des Schädels zeigt größere Verkalkungen im Gefäßsystem",
    "vietnamese": "bệnh nhân bị sốt cao và đau ngực dữ dội, chụp cắt lớp vi tính",
    "polish": "prześwietlenie wykazało źródło krwawienia w żołądku, świąd i ból głowy",
}
_CHINESE = (  # noqa: SIM905
    "患者 胸部 影像 显示 右上叶 结节 考虑 恶性 肿瘤 建议 进一步 检查 肝脏 密度 均匀 心脏 大小 "
    "正常 未见 明显 异常 的 与 在 可见 "
    "增强 扫描 动脉期 强化 边界 清楚 淋巴结 肿大 双侧 胸腔 积液 少量 左肺 下叶 炎症 复查 病灶 约 "
    "直径 脑 室 骨折 血管"
).split()
_JAPANESE = (  # noqa: SIM905
    "胸部 の 画像 では 右上 葉 に 結節 を 認める 悪性 腫瘍 が 疑われ ます 精密 検査 お すすめ し "
    "です リンパ節 腫大 は ない "
    "コントラスト レントゲン カテーテル 肝臓 と 心臓 大きさ 正常 である また この 病変 について"
).split()
_KOREAN = (  # noqa: SIM905
    "환자의 흉부 영상에서 우상엽에 결절이 관찰되며 악성 가능성을 고려해야 한다 간의 크기는 "
    "정상이고 추가 검사가 필요하다 림프절 비대는 없다"
).split()
_EMOJI = "😀 🫀 🧠 👩‍⚕️ 👨🏽‍🔬 🏥 💊 🩻 🇨🇭 🇯🇵 ❤️ 1️⃣ ✅ ⚠️ 🤰🏿".split(" ")  # noqa: SIM905
_LATEX = (
    r"\frac{{{a}}}{{{b}}}", r"$\alpha_{{{a}}} \leq \beta^{{{b}}}$", r"\begin{{equation}} ",
    r"\end{{equation}}", r"\sum_{{i={a}}}^{{{b}}} x_i^2", r"$p < 0.0{a}$", r"\mathbf{{x}}_{{{a}}}",
    r"\left( \int_0^{{{a}}} e^{{-t/{b}}}\,dt \right)", r"\textbf{{T{a}}} & {b} \\ \hline",
    r"$\mu \pm \sigma = {a}.{b}$", r"\sqrt{{{a}x + {b}y}}", r"\cite{{author20{a}}}",
)  # fmt: skip
_MEASURES = (
    "{a}.{b} µg/mL", "{a}–{b} mm³", "±{a} °C", "{a}×10⁻{b} mol·L⁻¹", "≥{a} mmHg", "≤{b} kg/m²",  # noqa: RUF001
    "½ tablet", "{a} Å", "{a}′{b}″", "Ω {a} kΩ", "№ {a}", "{a} ㎎", "{a}℃", "①②③", "{a}％",  # noqa: RUF001
)  # fmt: skip
# Where tokenizers come to differ: case folding of an odd letter, separators that \s excludes, marks
# that versions of Unicode order differently, letters newer than some tables, singletons.
_UNUSUAL = (
    "it'\u017f", "a\x1cb", "x\x1f\x1f y", "\u1e9b\u0323", "q\u0307\u0323", "\u0958\u093c",
    "\u0f71\u0f72", "\u1100\u1161\u11a8", "\u212b\u2126", "a\u1dfa\u0323", "\u0e38\u0301",
    "a\u0897\u0323", "\u0085 \u2028", "\U0001e030", "\u1c89", "\ua7cb", "\U00010d4a",
    "\U00011bf0", "\ufb1d", "\U0001d15e", "\u00a0\u3000 z",
)  # fmt: skip
_MARKS = "\u0301\u0300\u0308\u0303\u0327\u0323\u0328\u0302"


def mixed(size: int, seed: int = 2) -> list[str]:
    """Documents of mixed scripts of together at least `size` UTF-8 bytes, seeded."""
    rng = random.Random(seed)
    words = [text.split() for text in _WORDS.values()]
    terms = _terms(random.Random(0))
    accented = [
        w
        for name in ("french", "german", "vietnamese", "polish", "greek")
        for w in _WORDS[name].split()
    ]

    def run(phrase: list[str], joint: str = "") -> str:
        text = joint.join(rng.choices(phrase, k=rng.randint(2, 9)))
        return text + rng.choice("。，、；! ")  # noqa: RUF001

    def filled(templates: tuple[str, ...]) -> str:
        return rng.choice(templates).format(a=rng.randint(1, 99), b=rng.randint(1, 9))

    def combining() -> str:
        """Accents as some systems write them, each after its letter; now and then a pile."""
        word = unicodedata.normalize("NFD", rng.choice(accented))
        return word + rng.choice(_MARKS) * rng.randint(0, 2) if rng.random() < 0.2 else word

    def english() -> str:
        return " ".join([*rng.choices(_COMMON, k=rng.randint(3, 12)), rng.choice(terms)])

    makers: tuple[Callable[[], str], ...] = (
        english, english, english,
        lambda: filled(_LATEX), lambda: filled(_LATEX),
        lambda: filled(_MEASURES), lambda: filled(_MEASURES),
        lambda: run(_CHINESE), lambda: run(_JAPANESE), lambda: run(_KOREAN, " "),
        lambda: " ".join(rng.choices(rng.choice(words), k=rng.randint(2, 10))),
        lambda: " ".join(rng.choices(rng.choice(words), k=rng.randint(2, 10))),
        lambda: "".join(rng.choices(_EMOJI, k=rng.randint(1, 4))),
        combining,
        lambda: rng.choice(_UNUSUAL),
        lambda: " " * rng.randint(1, 12) + "\t" * rng.randint(0, 2) + "\n" * rng.randint(0, 3),
        lambda: "|" + " | ".join(str(rng.randint(0, 9999)) for _ in range(rng.randint(2, 6))) + "|",
    )  # fmt: skip

    def document() -> str:
        joints = [" ", " ", " ", "\n", "", ", ", "\r\n"]
        return "".join(
            rng.choice(makers)() + rng.choice(joints) for _ in range(rng.randint(10, 120))
        )

    return _until(size, document)


def _until(size: int, document: Callable[[], str]) -> list[str]:
    texts = []
    while size > 0:
        texts.append(document())
        size -= len(texts[-1].encode())
    return texts
