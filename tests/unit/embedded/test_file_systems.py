"""Which file system a path is on, by the kernel's list of mounts."""

from __future__ import annotations

import pytest

pytest.importorskip("skate._core", reason="skate's C++ core is not built")

from skate.engine.embedded.spilling import file_system_of

MOUNTS = [
    b"/dev/root / ext4 rw 0 0\n",
    b"none /media/Jos\xe9 tmpfs rw 0 0\n",
    b"/dev/b /media/a\\040b\\011c\\134d\\012e xfs rw 0 0\n",
    b" /media/unnamed ramfs rw 0 0\n",
    "none /media/caf\u00e9\u00a0noir tmpfs rw 0 0\n".encode(),
    b"/dev/c /hidden xfs rw 0 0\n",
    b"none /hidden tmpfs rw 0 0\n",
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/media", "ext4"),
        ("/media/Jos\udce9/folder", "tmpfs"),
        ("/media/Jose", "ext4"),
        ("/media/a b\tc\\d\ne", "xfs"),
        ("/media/unnamed/x", "ramfs"),
        ("/media/unnamed_too", "ext4"),
        ("/media/caf\u00e9\u00a0noir", "tmpfs"),
        ("/hidden", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path_of_any_bytes_is_found(path: str, kind: str) -> None:
    assert file_system_of(path, MOUNTS) == kind
