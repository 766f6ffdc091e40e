"""The functions that templates of Helm 3.8 may call, the oldest one that the chart is for.

Those are Go's of 1.17, Sprig's of 3.2.2 but `env` and `expandenv`, and Helm's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

__all__ = ["HELM_3_8", "calls", "eager"]

_GO = """
    and call eq ge gt html index js le len lt ne not or print printf println slice urlquery
"""

_HELM = """
    fail fromJson fromJsonArray fromYaml fromYamlArray include lookup required toJson toToml toYaml
    tpl
"""

_SPRIG = """
    abbrev abbrevboth add add1 add1f addf adler32sum ago all any append atoi b32dec b32enc
    b64dec b64enc base bcrypt biggest buildCustomCert camelcase cat ceil chunk clean coalesce
    compact concat contains date dateInZone dateModify decryptAES deepCopy deepEqual default
    derivePassword dict dig dir div divf duration durationRound empty encryptAES ext fail first
    float64 floor fromJson genCA genCAWithKey genPrivateKey genSelfSignedCert
    genSelfSignedCertWithKey genSignedCert genSignedCertWithKey get getHostByName has hasKey
    hasPrefix hasSuffix hello htmlDate htmlDateInZone htpasswd indent initial initials int int64
    isAbs join kebabcase keys kindIs kindOf last list lower max maxf merge mergeOverwrite min
    minf mod mul mulf mustAppend mustChunk mustCompact mustDateModify mustDeepCopy mustFirst
    mustFromJson mustHas mustInitial mustLast mustMerge mustMergeOverwrite mustPrepend
    mustRegexFind mustRegexFindAll mustRegexMatch mustRegexReplaceAll mustRegexReplaceAllLiteral
    mustRegexSplit mustRest mustReverse mustSlice mustToDate mustToJson mustToPrettyJson
    mustToRawJson mustUniq mustWithout nindent nospace now omit osBase osClean osDir osExt
    osIsAbs pick pluck plural prepend quote randAlpha randAlphaNum randAscii randBytes randInt
    randNumeric regexFind regexFindAll regexMatch regexQuoteMeta regexReplaceAll
    regexReplaceAllLiteral regexSplit repeat replace rest reverse round semver semverCompare seq
    set sha1sum sha256sum shuffle slice snakecase sortAlpha split splitList splitn squote sub
    subf substr swapcase ternary title toDate toDecimal toJson toPrettyJson toRawJson toString
    toStrings trim trimAll trimPrefix trimSuffix trimall trunc tuple typeIs typeIsLike typeOf
    uniq unixEpoch unset until untilStep untitle upper urlJoin urlParse uuidv4 values without
    wrap wrapWith
"""

HELM_3_8 = frozenset(f"{_GO} {_HELM} {_SPRIG}".split())

_KEYWORDS = frozenset(
    ["block", "define", "else", "end", "false", "if", "nil", "range", "template", "true", "with"]
)
"""`break` and `continue` came with Go 1.18."""

_ACTION = re.compile(r"\{\{-?(.*?)-?\}\}", re.DOTALL)
_APART = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\])*"|`[^`]*`', re.DOTALL)
_WORD = re.compile(r"(?<![\w.$])[A-Za-z_]\w*")


def calls(template: str) -> Iterator[str]:
    """The names of the functions that a template calls."""
    for action in _ACTION.finditer(template):
        plain = _APART.sub(" ", action[1])
        yield from (word for word in _WORD.findall(plain) if word not in _KEYWORDS)


def eager(template: str) -> str:
    """The same template with `all` and `any` for `and` and `or`.

    Those look at all their arguments, as `and` and `or` did before Go 1.18: a later one that needs
    what an earlier one asked for fails there.
    """
    return _ACTION.sub(lambda found: _outside_texts(found[0], _renamed), template)


def _renamed(code: str) -> str:
    renamed = {"and": "all", "or": "any"}
    return _WORD.sub(lambda found: renamed.get(found[0], found[0]), code)


def _outside_texts(action: str, change: Callable[[str], str]) -> str:
    parts, at = [], 0
    for apart in _APART.finditer(action):
        parts += [change(action[at : apart.start()]), apart[0]]
        at = apart.end()
    return "".join([*parts, change(action[at:])])
