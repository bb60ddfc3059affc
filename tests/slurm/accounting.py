"""Accounting for the Slurm of the tests, as large clusters have it: MariaDB, and slurmdbd in front of it."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.conftest import free_port

INSTALL = "apt-get install -y --no-install-recommends slurmdbd mariadb-server-core mariadb-client-core"
TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")
WITHOUT = "AccountingStorageType=accounting_storage/none\n"
WITH = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
"""
SLURMDBD = """
AuthType=auth/none
DbdHost=localhost
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser=root
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=slurm
"""


def why_no_accounting() -> str:
    """Why jobs cannot be accounted here; empty if they can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [program for program in ("slurmdbd", "mariadbd") if shutil.which(program, path=path) is None]
    return f"no accounting ({', '.join(missing)} missing); {INSTALL}" if missing else ""


class Accounting:
    """Where the two daemons listen, and how they are started."""

    def __init__(self, folder: Path) -> None:
        self.port, self.database_port = free_port(), free_port()
        self.folder = folder
        data = folder / "database"
        data.mkdir(parents=True)
        self.database = (
            *("mariadbd", "--no-defaults", "--user=root", "--skip-grant-tables", f"--datadir={data}"),
            *("--bind-address=127.0.0.1", f"--port={self.database_port}", f"--socket={folder}/database.socket"),
            *(f"--pid-file={folder}/mariadbd.pid", "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=16M"),
        )
        self.for_slurm = WITH.format(port=self.port)
        config = folder / "slurmdbd.conf"
        config.write_text(SLURMDBD.format(folder=folder, port=self.port, database_port=self.database_port))
        config.chmod(0o600)

    def bootstrap(self) -> None:
        """Make an empty database; only the tables that the server itself wants, which is ten times faster."""
        sql = "CREATE DATABASE mysql;\nUSE mysql;\n" + TABLES.read_text()
        path = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin"}
        subprocess.run(
            [*self.database, "--bootstrap"], input=sql, text=True, check=True, capture_output=True, env=path
        )

    def database_answers(self) -> bool:
        """Whether the database takes connections."""
        return _listens(self.database_port)

    def slurmdbd_answers(self) -> bool:
        """Whether slurmdbd takes connections."""
        return _listens(self.port)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
