"""
Real QEMU guests that bear witness of their disks.

A guest boots in about three seconds without hardware virtualisation; `World.boot`
restores one that had booted (``warm.py``), and `World.start` boots it.  Its only
program (``witness.c``) writes numbered records and says on the serial console
which of them are durable, so a test knows what each disk has to read::

    def test_a_commit_keeps_every_record(world: World) -> None:
        guest = world.define("web", active)      # an image whose chain exists
        world.boot("web")
        guest.wait_for(20)                       # durable records
        run_the_command_under_test(world.uri)    # nobody else holds the root
        guest.wait_for(20)
        assert guest.read_back()["vda"].ok       # the guest's view
        world.destroy("web")
        records_in(active, durable=guest.records())  # the host's view

Debian 12 wants, without recommended packages: ``qemu-system-x86 qemu-utils
libvirt-daemon-driver-qemu libvirt-daemon linux-image-cloud-amd64 gcc libc6-dev
libvirt-dev pkg-config``, and ``libvirt-python`` from PyPI.
"""
