"""Domain XML as libvirt writes it: what is read from it, and edits that leave the rest alone."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.model.domain import Source
from reconciler.model.errors import ObserveError
from reconciler.tools.domain_xml import (
    beside,
    disks,
    images,
    is_disk_only,
    snapshot,
    snapshot_memory,
    snapshot_parent,
    snapshot_states,
    targets,
    with_parent,
    with_sources,
    without_backing,
)

VDA_STORE = """
      <backingStore type='file' index='3'>
        <format type='qcow2'/>
        <source file='/images/mon.qcow2'/>
        <backingStore type='file' index='4'>
          <format type='raw'/>
          <source file='/images/base.raw'/>
          <backingStore/>
        </backingStore>
      </backingStore>"""

VDB_STORE = """
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/images/data.qcow2'/>
      </backingStore>"""

VDC_STORE = """
      <backingStore type='file' index='9'>
        <format type='qcow2'>
          <metadata_cache><max_size unit='bytes'>4194304</max_size></metadata_cache>
        </format>
        <source file='/images/a&gt;b &amp; "c" &#39;d&apos;.qcow2' startupPolicy='optional'>
          <seclabel model='dac' relabel='no'/>
        </source>
        <!-- </backingStore> is not the end, nor is <backingStore/> a beginning -->
        <![CDATA[ </backingStore> ]]>
        <backingStore type='block' index='10'>
          <format type='raw'/>
          <source dev='/dev/vg0/golden'/>
          <backingStore/>
        </backingStore>
      </backingStore>"""

DOMAIN = f"""<!-- written by hand > and "quoted -->
<domain type='kvm' id='7' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>zürich &amp; "web"</name>
  <description><![CDATA[<disk><target dev='vda'/><source file='/no.qcow2'/></disk>]]></description>
  <metadata>
    <vc:disk xmlns:vc="https://virt-chain.example/1">
      <vc:source file='/metadata/prefixed.qcow2'/>
      <vc:target dev='vda'/>
    </vc:disk>
    <devices xmlns='https://other.example/'>
      <disk type='file'>
        <source file='/metadata/default.qcow2'/><backingStore/><target dev='vda'/>
      </disk>
    </devices>
  </metadata>
  <iothreads>2</iothreads>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <!-- <disk type='file'><source file='/commented.qcow2'/><target dev='vda'/></disk> -->
    <disk type='file' device='disk' snapshot='external'>
      <driver name='qemu' type='qcow2' cache='none' io='native' iothread='2' discard='unmap'/>
      <source file='/images/tue.qcow2' index='1'/>{VDA_STORE}
      <target dev='vda' bus='virtio'/>
      <serial>type='raw' file='x'</serial>
      <alias name='virtio-disk0'/>
      <address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type="file" device="lun">
      <driver name="qemu"/>
      <target dev="vdb" bus="virtio"/>
      <source
          startupPolicy='mandatory'
          file = "/images/größe 'eins'.qcow2"
          index="2"
      >
        <seclabel model='dac' relabel='no'/>
        <privateData>
          <nodenames>
            <nodename type='storage' name='libvirt-2-storage'/>
            <nodename type='format' name='libvirt-2-format'/>
          </nodenames>
          <reservations type='none'/>
        </privateData>
      </source>{VDB_STORE}
    </disk>
    <disk type='file'>
      <driver cache='writeback' name='qemu' type = "qcow2"><metadata_cache/></driver>
      <source file='/images/&lt;c&gt; &amp; &#xe9;.qcow2'/>{VDC_STORE}
      <target dev='vdc' bus='scsi'/>
    </disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/images/d.qcow2'
      ><dataStore type='file'><format type='raw'/><source file='/images/d.data'/></dataStore
      ></source><backingStore type='file'><format type='raw'/><source file='/images/b.raw'
      /><backingStore  /></backingStore  ><target dev='vdd'/></disk>
    <disk type='file' device='disk'>
      <source file='/images/bare.raw'/>
      <target dev='vde' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/>
      <source file='/iso/debian.iso'/>
      <target dev='sda' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sdb' bus='sata'/>
      <readonly/>
    </disk>
    <disk type='file' device='floppy'>
      <source file='/iso/boot.img'/>
      <target dev='fda' bus='fdc'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/image'>
        <host name='mon1.example' port='6789'/>
      </source>
      <target dev='vdn' bus='virtio'/>
    </disk>
    <disk type='block' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source dev='/dev/vg0/lv0'/>
      <backingStore type='file'>
        <format type='qcow2'/>
        <source file='/images/under-lv.qcow2'/>
        <backingStore/>
      </backingStore>
      <target dev='vdo' bus='virtio'/>
    </disk>
    <disk type='volume' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source pool='default' volume='vol.qcow2'/>
      <target dev='vdp' bus='virtio'/>
    </disk>
    <interface type='network'>
      <source network='default'/>
      <target dev='vnet0'/>
    </interface>
    <serial type='file'>
      <source path='/log/serial.log'/>
      <target port='0'/>
    </serial>
  </devices>
  <qemu:commandline><qemu:arg value='-S'/></qemu:commandline>
</domain>
"""


def paths(*names: str) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names)


def test_every_disk_of_a_domain_is_read_and_no_cdrom_or_floppy() -> None:
    assert disks(DOMAIN) == {
        "vda": Source(
            "file",
            Path("/images/tue.qcow2"),
            "qcow2",
            paths("/images/mon.qcow2", "/images/base.raw"),
            whole=True,
        ),
        "vdb": Source(
            "file", Path("/images/größe 'eins'.qcow2"), None, paths("/images/data.qcow2")
        ),
        "vdc": Source(
            "file",
            Path("/images/<c> & é.qcow2"),
            "qcow2",
            paths("/images/a>b & \"c\" 'd'.qcow2"),
        ),
        "vdd": Source("file", Path("/images/d.qcow2"), "qcow2", paths("/images/b.raw"), whole=True),
        "vde": Source("file", Path("/images/bare.raw")),
        "vdn": Source("network", None, "raw"),
        "vdo": Source("block", None, "qcow2", paths("/images/under-lv.qcow2"), whole=True),
        "vdp": Source("volume", None, "qcow2"),
    }


def test_every_file_that_the_xml_names_is_found_and_none_of_comments_or_metadata() -> None:
    assert images(DOMAIN) == set(
        paths(
            "/images/tue.qcow2",
            "/images/mon.qcow2",
            "/images/base.raw",
            "/images/größe 'eins'.qcow2",
            "/images/data.qcow2",
            "/images/<c> & é.qcow2",
            "/images/a>b & \"c\" 'd'.qcow2",
            "/images/d.qcow2",
            "/images/d.data",
            "/images/b.raw",
            "/images/bare.raw",
            "/iso/debian.iso",
            "/iso/boot.img",
            "/images/under-lv.qcow2",
        )
    )


def a_disk(store: str = "", *, driver: str = "<driver name='qemu' type='qcow2'/>") -> str:
    """A domain whose only disk, ``vda``, has *store* between its source and its target."""
    return (
        "<domain type='kvm'>\n  <devices>\n    <disk type='file' device='disk'>\n"
        f"      {driver}\n      <source file='/images/x.qcow2'/>{store}\n"
        "      <target dev='vda' bus='virtio'/>\n      <boot order='1'/>\n    </disk>\n"
        "  </devices>\n</domain>\n"
    )


STORES = [
    # id, what the XML has, backing files, whether they go down to the base
    ("left to the headers", "", (), False),
    ("ended at once", "\n      <backingStore/>", (), True),
    ("ended at once, spelled out", "\n      <backingStore></backingStore>", (), True),
    (
        "one file, the rest left to the headers",
        "<backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>",
        ("/b",),
        False,
    ),
    (
        "one file and the end",
        (
            "<backingStore type='file'><format type='raw'/><source file='/b'/><backingStore/>"
            "</backingStore>"
        ),
        ("/b",),
        True,
    ),
    (
        "a network image below",
        (
            "<backingStore type='network'><format type='raw'/><source protocol='nbd' name='n'>"
            "<host name='h'/></source><backingStore/></backingStore>"
        ),
        (),
        False,
    ),
]


@pytest.mark.parametrize(
    ("store", "backing", "whole"), [pytest.param(*row, id=name) for name, *row in STORES]
)
def test_backing_files_are_read_as_far_as_the_xml_spells_them(
    store: str, backing: tuple[str, ...], whole: bool
) -> None:
    found = disks(a_disk(store))

    assert found == {
        "vda": Source("file", Path("/images/x.qcow2"), "qcow2", paths(*backing), whole)
    }


@pytest.mark.parametrize("store", [pytest.param(store, id=name) for name, store, *_ in STORES])
def test_the_backing_files_go_and_the_rest_of_the_disk_stays(store: str) -> None:
    assert without_backing(a_disk(store), ["vda"]) == a_disk()


def test_an_ended_store_with_nothing_before_the_next_tag_takes_nothing_with_it() -> None:
    text = a_disk("<backingStore/><alias name='a'/>")

    assert without_backing(text, ["vda"]) == a_disk("<alias name='a'/>")


def test_an_ended_store_as_the_last_element_takes_nothing_with_it() -> None:
    text = a_disk().replace("</disk>", "  <backingStore/>\n    </disk>")

    assert without_backing(text, ["vda"]) == a_disk()


ONE_LINE_STORE = (
    "<backingStore type='file'><format type='raw'/><source file='/images/b.raw'\n"
    "      /><backingStore  /></backingStore  >"
)

WITHOUT = [
    # id, targets, what goes
    ("none", [], []),
    ("a disk with two backing files", ["vda"], [VDA_STORE]),
    ("a disk whose target comes first", ["vdb"], [VDB_STORE]),
    ("a disk with comments and CDATA in it", ["vdc"], [VDC_STORE]),
    ("all on one line", ["vdd"], [ONE_LINE_STORE]),
    ("several at once", ["vdc", "vda"], [VDA_STORE, VDC_STORE]),
    ("a disk without any", ["vde"], []),
    ("an empty cdrom", ["sdb"], []),
    ("no such disk", ["vdz"], []),
    ("the target of an interface", ["vnet0"], []),
]


@pytest.mark.parametrize(
    ("targets", "gone"), [pytest.param(*row, id=name) for name, *row in WITHOUT]
)
def test_without_backing_takes_the_stores_of_these_disks_and_nothing_else(
    targets: list[str], gone: list[str]
) -> None:
    expected = DOMAIN
    for part in gone:
        assert expected.count(part) == 1
        expected = expected.replace(part, "")

    assert without_backing(DOMAIN, targets) == expected


WITH = [
    # id, target, image, its format, edits: text that is there once, and what it becomes
    (
        "the disk with two backing files",
        "vda",
        "/images/wed.qcow2",
        "qcow2",
        [
            ("type='qcow2' cache='none'", "type=\"qcow2\" cache='none'"),
            ("file='/images/tue.qcow2'", 'file="/images/wed.qcow2"'),
            (VDA_STORE, ""),
        ],
    ),
    (
        "a driver without a type, a source that spans lines",
        "vdb",
        "/images/wed.qcow2",
        "qcow2",
        [
            ('<driver name="qemu"/>', '<driver type="qcow2" name="qemu"/>'),
            ("file = \"/images/größe 'eins'.qcow2\"", 'file="/images/wed.qcow2"'),
            (VDB_STORE, ""),
        ],
    ),
    (
        "a driver whose type is spaced, with children; entities in the name",
        "vdc",
        "/images/wed.raw",
        "raw",
        [
            ('type = "qcow2"', 'type="raw"'),
            ("file='/images/&lt;c&gt; &amp; &#xe9;.qcow2'", 'file="/images/wed.raw"'),
            (VDC_STORE, ""),
        ],
    ),
    (
        "a source with a data store",
        "vdd",
        "/images/wed.qcow2",
        "qcow2",
        [
            (
                "<driver name='qemu' type='qcow2'/><source file='/images/d.qcow2'",
                '<driver name=\'qemu\' type="qcow2"/><source file="/images/wed.qcow2"',
            ),
            (ONE_LINE_STORE, ""),
        ],
    ),
    (
        "no driver",
        "vde",
        "/images/wed.raw",
        "raw",
        [("file='/images/bare.raw'", 'file="/images/wed.raw"')],
    ),
    (
        "a name with all that XML quotes",
        "vde",
        '/images/it\'s "<a>" & b]]>.raw',
        "raw",
        [
            (
                "file='/images/bare.raw'",
                'file="/images/it\'s &quot;&lt;a&gt;&quot; &amp; b]]&gt;.raw"',
            )
        ],
    ),
    (
        "a name with a double quote only",
        "vde",
        '/images/5" disk.raw',
        "raw",
        [("file='/images/bare.raw'", "file='/images/5\" disk.raw'")],
    ),
    (
        "a name that looks like an edit of its own",
        "vde",
        r"/images/\1 \g<0> type='raw' 日本 🖴.raw",
        "raw",
        [
            (
                "file='/images/bare.raw'",
                "file=\"/images/\\1 \\g&lt;0&gt; type='raw' 日本 🖴.raw\"",
            )
        ],
    ),
]


@pytest.mark.parametrize(
    ("target", "image", "image_format", "edits"),
    [pytest.param(*row, id=name) for name, *row in WITH],
)
def test_with_sources_edits_one_disk_and_no_other_byte(
    target: str, image: str, image_format: str, edits: list[tuple[str, str]]
) -> None:
    expected = DOMAIN
    for old, new in edits:
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    edited = with_sources(DOMAIN, {target: (Path(image), image_format)})

    assert edited == expected
    assert disks(edited)[target].path == Path(image)


def test_several_disks_are_edited_at_once() -> None:
    one = {"vda": (Path("/new/a.qcow2"), "qcow2")}
    other = {"vdc": (Path("/new/c.qcow2"), "qcow2")}

    assert with_sources(DOMAIN, other | one) == with_sources(with_sources(DOMAIN, one), other)


def test_an_edit_of_a_disk_whose_chain_ends_at_once_keeps_its_target() -> None:
    edited = with_sources(a_disk("\n      <backingStore/>"), {"vda": (Path("/y"), "qcow2")})

    assert disks(edited) == {"vda": Source("file", Path("/y"), "qcow2")}
    assert "<boot order='1'/>" in edited


NO_FILE = [
    ("no such disk", "vdz"),
    ("an empty cdrom", "sdb"),
    ("a network disk", "vdn"),
    ("a block device", "vdo"),
    ("a volume", "vdp"),
    ("the target of an interface", "vnet0"),
]


@pytest.mark.parametrize("target", [pytest.param(row, id=name) for name, row in NO_FILE])
def test_a_disk_without_a_file_gets_none(target: str) -> None:
    with pytest.raises(ObserveError) as raised:
        with_sources(DOMAIN, {target: (Path("/x"), "raw")})

    assert str(raised.value) == f"the domain has no disk {target} in a file"


UNREADABLE = [
    ("empty", ""),
    ("cut off", DOMAIN[: len(DOMAIN) // 2]),
    ("no XML", "error: Domain not found"),
    ("an unknown entity", a_disk().replace("/images/x", "/images/&x;")),
]


@pytest.mark.parametrize("text", [pytest.param(row, id=name) for name, row in UNREADABLE])
def test_xml_that_cannot_be_read_is_an_error_of_the_host(text: str) -> None:
    for act in (
        disks,
        images,
        snapshot_memory,
        snapshot_states,
        lambda text: with_sources(text, {}),
        lambda text: without_backing(text, []),
    ):
        with pytest.raises(ObserveError, match=r"^libvirt's XML cannot be read: "):
            act(text)


def job(mirror: str, source: str = "/images/tue.qcow2", store: str = VDA_STORE) -> str:
    """A domain in one phase of a commit of tue into mon."""
    return f"""<domain type='kvm' id='3'>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' iothread='1'/>
      <source file='{source}' index='1'/>{store}{mirror}
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


MIRROR = """
      <mirror type='file' job='active-commit'{}>
        <format type='qcow2'/>
        <source file='/images/mon.qcow2' index='3'/>
        <backingStore type='file' index='4'>
          <format type='raw'/>
          <source file='/images/base.raw'/>
          <backingStore/>
        </backingStore>
      </mirror>"""
PIVOTED_STORE = """
      <backingStore type='file' index='4'>
        <format type='raw'/>
        <source file='/images/base.raw'/>
        <backingStore/>
      </backingStore>"""

TUE, MON, RAW = paths("/images/tue.qcow2", "/images/mon.qcow2", "/images/base.raw")
BEFORE = Source("file", TUE, "qcow2", (MON, RAW), whole=True)

PHASES = [
    ("before", job(""), BEFORE),
    (
        "copying",
        job(MIRROR.format("")),
        Source("file", TUE, "qcow2", (MON, RAW), whole=True, mirror=MON),
    ),
    (
        "ready",
        job(MIRROR.format(" ready='yes'")),
        Source("file", TUE, "qcow2", (MON, RAW), whole=True, mirror=MON, ready=True),
    ),
    (
        "told to give up",
        job(MIRROR.format(" ready='abort'")),
        Source("file", TUE, "qcow2", (MON, RAW), whole=True, mirror=MON),
    ),
    (
        "pivoting",
        job(MIRROR.format(" ready='pivot'")),
        Source("file", TUE, "qcow2", (MON, RAW), whole=True, mirror=MON),
    ),
    (
        "pivoted",
        job("", str(MON), PIVOTED_STORE),
        Source("file", MON, "qcow2", (RAW,), whole=True),
    ),
    (
        "a copy job, in the words of libvirt before 1.2.6",
        job("\n      <mirror file='/copy/tue.qcow2' format='qcow2' ready='yes'/>"),
        Source(
            "file", TUE, "qcow2", (MON, RAW), whole=True, mirror=Path("/copy/tue.qcow2"), ready=True
        ),
    ),
    (
        "a copy to a block device",
        job("\n      <mirror type='block' job='copy'><source dev='/dev/vg0/copy'/></mirror>"),
        Source("file", TUE, "qcow2", (MON, RAW), whole=True, mirror=Path("?")),
    ),
]


@pytest.mark.parametrize(("text", "source"), [pytest.param(*row, id=name) for name, *row in PHASES])
def test_the_phases_of_a_commit_of_the_active_image(text: str, source: Source) -> None:
    assert disks(text) == {"vda": source}


def test_edits_leave_a_mirror_alone() -> None:
    text = job(MIRROR.format(" ready='yes'"))

    assert without_backing(text, ["vda"]) == job(MIRROR.format(" ready='yes'"), store="")
    assert with_sources(text, {"vda": (MON, "qcow2")}) == job(
        MIRROR.format(" ready='yes'"), store=""
    ).replace("type='qcow2' io", 'type="qcow2" io').replace(f"'{TUE}'", f'"{MON}"')


def test_the_images_of_a_mirror_are_named_by_the_domain() -> None:
    mirror = "<mirror type='file' job='copy'><source file='/copy/new.qcow2'/></mirror>"

    assert images(job(mirror)) == {TUE, MON, RAW, Path("/copy/new.qcow2")}


NAMES = st.text(
    st.characters(exclude_categories=("Cc", "Cs", "Cn"), exclude_characters="/"), min_size=1
).map(lambda name: Path("/images") / name)


@given(
    st.sampled_from(["vda", "vdb", "vdc", "vdd", "vde"]), NAMES, st.sampled_from(["raw", "qcow2"])
)
def test_the_name_that_is_put_in_is_read_back_and_no_other_disk_changes(
    target: str, name: Path, image_format: str
) -> None:
    before = disks(DOMAIN)
    edited = with_sources(DOMAIN, {target: (name, image_format)})
    has_driver = target != "vde"

    assert disks(edited) == before | {
        target: Source("file", name, image_format if has_driver else None)
    }
    assert with_sources(edited, {target: (name, image_format)}) == edited


@given(NAMES, NAMES)
def test_a_name_is_found_and_edited_however_it_was_written(old: Path, new: Path) -> None:
    text = a_disk(VDA_STORE).replace("'/images/x.qcow2'", quoteattr(str(old)))

    assert disks(text)["vda"].path == old
    assert with_sources(text, {"vda": (new, "qcow2")}) == a_disk(
        driver="<driver name='qemu' type=\"qcow2\"/>"
    ).replace("'/images/x.qcow2'", quoteattr(str(new)))


def test_a_snapshot_takes_the_named_disks_and_leaves_out_the_others() -> None:
    text = snapshot({"vda": Path("/images/a \"b\" & 'c'.qcow2")}, ["vdb", "s&a"])
    root = ElementTree.fromstring(text)

    assert root.tag == "domainsnapshot"
    assert [one.attrib for one in root.findall("./disks/disk")] == [
        {"name": "vda", "snapshot": "external"},
        {"name": "vdb", "snapshot": "no"},
        {"name": "s&a", "snapshot": "no"},
    ]
    assert [one.attrib for one in root.findall("./disks/disk[@name='vda']/*")] == [
        {"type": "qcow2"},
        {"file": "/images/a \"b\" & 'c'.qcow2"},
    ]


METADATA = """<domainsnapshot>
  <name>before the upgrade</name>
  <state>disk-snapshot</state>
  <parent><name>mon</name></parent>
  <memory snapshot='external' file='/mem/before'/>
  <disks>
    <disk name='vda' snapshot='external' type='file'>
      <driver type='qcow2'/>
      <source file='/images/tue &amp; wed.qcow2'>
        <seclabel model='dac' relabel='no'/>
      </source>
    </disk>
    <disk name='vdb' snapshot='no'/>
    <disk name='vdc' snapshot='internal'/>
    <disk name='vdd' snapshot='external' type='block'><source dev='/dev/vg0/snap'/></disk>
  </disks>
  <domain type='kvm'>
    <devices>
      <disk type='file' device='disk'>
        <source file='/images/mon.qcow2'/>
        <target dev='vda' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'>
        <source file='/images/data.qcow2'/>
        <target dev='vdb' bus='virtio'/>
      </disk>
      <disk type='file' device='disk'>
        <source file='/images/inside.qcow2'/>
        <target dev='vdc' bus='virtio'/>
      </disk>
      <disk type='block' device='disk'>
        <source dev='/dev/vg0/vm'/>
        <target dev='vdd' bus='virtio'/>
      </disk>
    </devices>
  </domain>
</domainsnapshot>
"""


def test_a_snapshot_means_the_image_that_was_active_before_it() -> None:
    assert snapshot_states(METADATA) == {"vda": Path("/images/mon.qcow2")}
    assert snapshot_memory(METADATA) == Path("/mem/before")


@pytest.mark.parametrize("parent", ["tue & wed", None])
def test_a_snapshot_gets_another_parent(parent: str | None) -> None:
    text = with_parent(METADATA, parent)

    assert snapshot_parent(METADATA) == "mon"
    assert snapshot_parent(text) == parent
    assert snapshot_states(text) == snapshot_states(METADATA)
    assert is_disk_only(text)


def test_an_internal_snapshot_has_its_state_in_the_image_itself() -> None:
    text = "<domainsnapshot><name>a</name><memory snapshot='internal'/></domainsnapshot>"

    assert snapshot_states(text) == {}
    assert snapshot_memory(text) is None


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ("", ()),
        (
            "<os><nvram>/vars/web.fd</nvram></os>",
            ("the NVRAM of the guest's firmware (/vars/web.fd)",),
        ),
        (
            "<os><nvram type='file'><source file='/vars/web.fd'/></nvram></os>",
            ("the NVRAM of the guest's firmware (/vars/web.fd)",),
        ),
        (
            "<os><nvram/></os><devices><tpm><backend type='emulator'/></tpm></devices>",
            ("the NVRAM of the guest's firmware", "the state of its TPM"),
        ),
        ("<devices><tpm><backend type='passthrough'/></tpm></devices>", ()),
    ],
    ids=["plain", "nvram", "nvram as a source", "nvram and tpm", "the host's tpm"],
)
def test_what_is_in_no_disk(parts: str, told: tuple[str, ...]) -> None:
    assert beside(f"<domain>{parts}</domain>") == told


@pytest.mark.parametrize("special", ["transient", "shareable"])
def test_a_disk_that_has_to_keep_its_image_is_told(special: str) -> None:
    text = (
        "<domain><devices><disk type='file' device='disk'><source file='/images/a.raw'/>"
        f"<target dev='vda'/><{special}/></disk></devices></domain>"
    )
    assert disks(text)["vda"].special == special


def test_every_drive_has_its_target() -> None:
    """A snapshot that leaves a floppy out of its XML takes the floppy too, or is refused."""
    text = (
        "<domain><devices>"
        "<disk type='file' device='disk'><target dev='vda'/></disk>"
        "<disk type='network' device='lun'><target dev='sda'/></disk>"
        "<disk type='file' device='cdrom'><target dev='hda'/></disk>"
        "<disk type='file' device='floppy'><target dev='fda'/></disk>"
        "<controller type='usb'/></devices></domain>"
    )

    assert targets(text) == ("vda", "sda", "hda", "fda")
