"""Split captions into words as the Penn Treebank tokenizer of the COCO evaluation does.

The published scores were computed on the output of Stanford CoreNLP 3.4.1 (``-preserveLines -lowerCase``) with the
punctuation removed. This is the same for the text that captions are made of; a test compares the two where Java and
pycocoevalcap are installed.

Some habits of that pipeline look like mistakes and count in every published score, so they are kept: brackets become
``-lrb-`` and are not removed, ``!!`` and ``?!`` are not removed either, characters that no rule knows vanish.
"""

from __future__ import annotations

import re

# Removed after tokenizing. The original list has -LRB- in capitals, which never meets the lower-case tokens.
_PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# One word in print, two tokens in the treebank.
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "gimme": "gim me",
    "lemme": "lem me",
    "wanna": "wan na",
    "d'ye": "d' ye",
    "y'all": "y' all",
    "'tis": "'t is",
    "'twas": "'t was",
}
_REPLACED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "£": "#",
    "€": "$",
    "¢": "cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
    "⅓": "1/3",
    "⅔": "2/3",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "",
    "&nbsp;": " ",
}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00ad": None})

# Abbreviations whose period belongs to them.
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|sr|jr|st|ave|blvd|rd|hwy|vs|etc|inc|corp|co|ltd|bros|gov|sen|rep|gen|col|lt|sgt|capt|cmdr|adm"
    "|rev|hon|pres|messrs|mt|ft|jan|feb|mar|apr|jun|jul|aug|sept|sep|oct|nov|dec|ariz|calif|colo|conn|fla|mass|mich"
    "|minn|miss|mont|okla|penn|tenn|tex|wash|wis|univ|dept|est|approx|al|bldg|dist|intl|mfg|pvt|ph"
)
_SUFFIX = r"'(?:s|m|d|ll|re|ve)\b"
# Capitals around it keep an ampersand: AT&T, but at & t.
_AMPERSAND = re.compile(r"([A-Z]+&[A-Z]+)|(?<=[^\W_])&(?!(?:amp|lt|gt|quot|nbsp);)(?=[^\W_])")
_TOKEN = re.compile(
    rf"""
    (?P<plain> (?<!\S)[a-z]+(?!\S) )  # most words, before any rule is tried
    | (?P<web> https?://[^\s<>"]*[^\s<>".,;:!?)'] | www\.[^\s<>"]*[^\s<>".,;:!?)']
           | (?:[^\W_]+\.){{1,5}}(?:com|net|org|edu)(?![^\W_])(?:/[^\s"<>|()]*[^\s"<>|.!?(){{}},-])?
           | [\w.+-]+@[\w-]+(?:\.[\w-]+)+ | @[a-z_]\w* | \#[^\W\d_]+ )
    | (?P<tag> </?[a-z][^<>\s]*(?:\s[^<>]*)?> )
    | (?P<mark> &(?:amp|lt|gt|quot|nbsp); | [½¼¾⅓⅔] )
    | (?P<apostrophe> 'n' | '(?:tis|twas|till?|em|cause)\b | '\d\ds\b | {_SUFFIX}
              | (?:c'mon|c'est|s'mores|li'l|nat'l|ev'ry|nor'easter)\b | (?:ol|somethin|dunkin)'
              | [dlo]'[^\W\d_]{{2,}} | [^\W\d_]+[aeiouy]'[aeiou][^\W\d_]* )
    | (?P<dots> \.{{3,}} | … )
    | (?P<marks> [?!]+ )
    | (?P<acronym> (?:[a-z]\.)+(?![^\W_]) | [^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)+  # and words without a space
              | (?:{_ABBREVIATIONS})\.(?=\s|$|[,;:)"'-]) | (?:no|fig|vol|p|pp|op)\.(?=\s?\d) )
    | (?P<number> (?:(?<=\s)|^)[-+]?(?:\d[\d,]*)?\.?\d+(?:[.,:/-]\d+)*(?=\s|$|[;!?%)"]|[.,:](?!\d))
              | \d+(?:[.,:]\d+)+ | \.\d+ )
    | (?P<contraction> [^\W\d_]+?(?=n't) | n't )
    | (?P<word> (?:o|d|l|ma|ne|jack|will|hallowe)'(?:clock|am|er|en|ye|o)\b | y'(?=all\b)
              | c(?:\+\+|\#) | _+ | \*{{2,}} | [^\W_]+(?:(?:[-/_@]|&(?!amp;|lt;|gt;|quot;|nbsp;))[^\W_]+)* )
    | (?P<dash> --+ | [\u2013\u2014] | - )
    | (?P<other> [^\w\s] | _ )
    """,
    re.VERBOSE,
)
_KNOWN_MARKS = frozenset("$%#&@*+=/\\<>^~|°§©®™¥")


def tokenize(caption: str) -> list[str]:
    """Split a caption into lower-case words without punctuation."""
    if "&" in caption:
        caption = _AMPERSAND.sub(lambda match: match[1] or " & ", caption)
    text = " ".join(caption.translate(_QUOTES).lower().split())
    words: list[str] = []
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "plain" and (token := match.group()) not in _SPLIT:
            words.append(token)
        else:
            words += _tokens_of(match.lastgroup or "", match.group())
    return [word for word in words if word not in _PUNCTUATION]


def _tokens_of(kind: str, text: str) -> list[str]:
    if kind in ("dots", "dash"):
        return []
    if kind == "mark":
        return _REPLACED[text].split()
    if kind == "other":
        text = _REPLACED.get(text, text)
        return [text] if len(text) > 1 or text in _KNOWN_MARKS else []
    return _SPLIT.get(text, text).split(" ")
