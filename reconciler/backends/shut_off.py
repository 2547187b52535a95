"""Disks of a libvirt domain that is off: qemu-img does the data, libvirt keeps the definition."""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.backends.offline import Offline
from reconciler.backends.together import Together
from reconciler.model.image import Chain
from reconciler.model.steps import Attach, Create, Forget, Step
from reconciler.tools import images
from reconciler.tools.hypervisor import Hypervisor


@dataclass(slots=True)
class ShutOff(Offline):
    """
    One disk of a domain that is off.

    Attributes:
        host, domain, target: Where the disk is defined.
    """

    host: Hypervisor | None = None
    domain: str = ""
    target: str = ""

    def run(self, step: Step, chain: Chain) -> Together | None:
        """Carry out *step*, as `Offline.run` does; an attach changes the definition."""
        assert self.host is not None
        match step:
            case Attach(image):
                self._like_active(image, chain)
                there = self.observe(image).image(image)
                return Together("attach", self.host, self.domain, self.target, image, there.format)
            case Forget(snapshot):
                self.host.forget(self.domain, snapshot)
                return None
            case _:
                # after a block job the definition spells out backing files that will not be there
                self.host.follow_headers(self.domain, self.target)
                return Offline.run(self, step, chain)

    def done(self, step: Step, chain: Chain) -> bool:
        """True where the interrupted *step* has left its mark on disk or in the definition."""
        if isinstance(step, Attach):
            assert self.host is not None
            domain = self.host.domain(self.domain)
            disk = domain.persistent.get(self.target) if domain else None
            there = images.identity(step.image)
            return bool(disk and disk.path and there and images.identity(disk.path) == there)
        return Offline.done(self, step, chain)

    def settle(self) -> None:
        """The definition follows the headers, whatever libvirt knew when it was interrupted."""
        assert self.host is not None
        self.host.follow_headers(self.domain, self.target)

    def _created(self, step: Create, chain: Chain) -> bool:
        """An overlay that was made, and is attached only by the step after it."""
        below = images.backing_of(step.image)
        return Offline._created(self, step, chain) or (below is not None and below == step.backing)
