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
# Words of a series' description or of its processing: they name no patient.
NOISE = re.compile(
    r"flair|t2f|[23]d|axi?(al)?|tra(ns(verse)?)?|sag(ittal)?|cor(onal)?|obl(ique)?|tse|fse|se|tir|tirm|dark|fluid|darkfluid|spc"
    r"|space|cube|vista|propeller|blade|sense|grappa|cs|fs|fatsat|iso(tropic)?|images?(tr|ts|val)?|img|scans?|anat(omy)?"
    r"|brain|head|skull|nifti|nii|dicom|mri?|mrt|irm|vol(umes?)?|data|dataset|cohort|patients|subjects|cases|files|input|series|seq(uence)?|pre|post|gd|gad|contrast|km|w|weighted"
    r"|native|raw|rawdata|orig(inal)?|manual|auto(matic)?|expert|final|copy|kopie|bet|hdbet|synthstrip|(skull|un)?stripped|strip|ss"
    r"|noskull|masked|bias(corr)?|corr(ected)?|n4(itk)?|(pre)?norm(ali[sz]ed)?|zscore|reg(istered)?|coreg(istered)?|aligned|warped"
    r"|mni(152\w*)?|r?sri(24)?|lps|ras|rai|lpi|lia|resampled?|res|\d+mm|\d*iso|denoised|restored?|cropp?(ed)?|std|reorient(ed)?|eddy"
    r"|preproc(essed)?|defaced?|conformed|to|in|into|on|onto|weighted|study|derivatives|sourcedata|source|nifti|niftis"
    r"|mpr|wip|view|tilt|eq|shc|clear|spair|spir|fat|sat|dis[23]d|nd|mobiview|filt(ered)?|fast|hr|hires|highres|lowres|res"
    r"|(post|pre)?(gad|gd|contrast|km)|multi|uw|br|anon(ymi[sz]ed)?|imgs?|resources?|assessors?|outputs?|out|results?"
    r"|exports?|downloads?|process(ed|ing)|mris?|images?nii|sequences|sessions|visits"
)
DARK_FLUID = re.compile(r"dark[-_ ]?fluid|(?<![^\W_])da-fl(?![^\W_])", re.IGNORECASE)  # Siemens's name of FLAIR


def words(text: str) -> list[str]:
    """The words of a name, in small letters."""
    return WORD.findall(unicodedata.normalize("NFC", text).casefold())
