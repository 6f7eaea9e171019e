"""Find the engine's release in a line: in the tag of a container image, or in a package's pin."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cgbench.planning.policies import POLICIES

_IMAGE = re.compile(r"(?P<name>[^\s=]+?)(?::(?P<tag>\w[\w.-]*))?(?:@\w+:\w+)?")
_PIN = re.compile(r"(?P<name>[\w-]+)(?:\[[\w,.-]*\])?(?:==|@)(?P<tag>v?\d[\w.+-]*)")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)+)")

# The images of each family of policies, as their registries' paths end.
_IMAGES = (
    (re.compile(r"vllm/vllm-openai(-[a-z]+)?"), "vllm"),
    (re.compile(r"ascend/vllm-ascend"), "vllm-ascend"),
    (re.compile(r"lmsysorg/sglang"), "sglang"),
    (re.compile(r"tensorrt-llm/release"), "tensorrt-llm"),
    (re.compile(r"paddlepaddle/fastdeploy[\w.-]*"), "fastdeploy"),
)
_PACKAGES = {
    "vllm": "vllm",
    "vllm-ascend": "vllm-ascend",
    "sglang": "sglang",
    "tensorrt-llm": "tensorrt-llm",
    "fastdeploy": "fastdeploy",
    "fastdeploy-gpu": "fastdeploy",
}


@dataclass(frozen=True, slots=True)
class StatedRelease:
    """A ``StatedRelease`` is a release that a line names: its word, and the family of policies.

    ``version`` holds the numbers alone.
    """

    word: str
    family: str
    version: str

    @property
    def policy(self) -> str | None:
        """Return the policy of this release, or None if it has none."""
        parts = self.version.split(".")
        names = (f"{self.family}-{'.'.join(parts[:n])}" for n in range(len(parts), 0, -1))
        return next((name for name in names if name in POLICIES), None)

    def unplanned(self, taken: str) -> str:
        """Return the warning that the plan is that of the policy ``taken``, not of this release."""
        known = [name for name in POLICIES if re.fullmatch(rf"{self.family}-[0-9.]+", name)]
        others = ", ".join(name for name in known if name != taken)
        choice = f". --policy chooses another: {others}" if others else ", the only release known"
        return f"{self.word} names release {self.version}: planned as {taken}{choice}"


def image_family(word: str) -> str | None:
    """Return the family of policies that a container image runs, or None for any other word."""
    found = _IMAGE.fullmatch(word)
    if found is None:
        return None
    name = found["name"]
    ends = (family for image, family in _IMAGES if re.fullmatch(rf"(?:.*/)?{image.pattern}", name))
    return next(ends, None)


def stated_release(found: Sequence[Sequence[str]], family: str) -> StatedRelease | None:
    """Return the release that the commands of a line name first, of a family or a fork of it.

    Tags without a version, such as ``latest``, name none.
    """
    stated = (each for words in found for word in words for each in _of_word(word))
    return next((each for each in stated if each.family.startswith(family)), None)


def _of_word(word: str) -> Iterator[StatedRelease]:
    image, pin = _IMAGE.fullmatch(word), _PIN.fullmatch(word)
    if pin and (package := _PACKAGES.get(pin["name"].replace("_", "-"))):
        family, tag = package, pin["tag"]
    elif image and image["tag"] and (named := image_family(word)):
        family, tag = named, image["tag"]
    else:
        return
    if version := _VERSION.match(tag):
        yield StatedRelease(word, family, version[1])
