"""The words of an image's name or of a series' description that say what it shows. They are read in small letters."""

from __future__ import annotations

import re
import unicodedata

CACHED = 65536  # names: several questions are answered for each

WORD = re.compile(r"[^\W_]+")
FLAIR = re.compile(r"\w*flair\w*|t2f|darkfluid")
MASK = re.compile(
    r"(?!.*unmask)\w*mask(s|e|en)?\d*|(?!msseg)\w*seg(s|m|ment|ments|mented|mentations?|mentierung(en)?)?\d*|labels?(tr|ts|val|map)?\d*"
    r"|rois?\d*|vois?\d*|aparc\w*|wmparc|parc|parcellations?|glistrboost|annot(ation)?s?|contours?|delineations?|staple"
    r"|groundtruth|preds?(tr|ts)?|predictions?|predicted|wmh|ples|\w*lesionmap"
)
OTHER = re.compile(
    r"(3d)?t[12](?![0-9f]|flair)[a-z]*|(fs)?t[12]|mp2?rage|f?spgr|bravo|swi|swan|gre|megre|mese|dwi|adc|dti|hardi|tracew?|bold|fmri|func"
    r"|p?c?asl|cbf|r?cbv|dsc|dce|perf(usion)?|pdw|angio|tof|mr[av]|mrs|cta?|pet|fdg|stir|epi|sbref|m0scan|fmap|phasediff"
    r"|magnitude\d?|phase\d?|locali[sz]er|scout|haste|ciss|fiesta|flash|vibe|mtw|unit1|inplanet[12]|qsm|vfa|irt1"
)
DERIVATIVE = re.compile(
    r"prob(s|abilit(y|ies))?|pve|templates?|atlas|warp(field)?|jac(obian)?|deformation|displacement|xfm|biasfield|tpm|priors?"
    r"|uncertainty|entropy|saliency|softmax|logits|skeleton|residual|mixeltype|[a-z0-9]+map"
)
DARK_FLUID = re.compile(r"dark[-_ ]?fluid|(?<![^\W_])da-fl(?![^\W_])", re.IGNORECASE)  # Siemens's name of FLAIR


def words(text: str) -> list[str]:
    """The words of a name, in small letters."""
    return WORD.findall(unicodedata.normalize("NFC", text).casefold())
