"""The series that a DICOM file belongs to: all files of one slide share it."""

import warnings
from pathlib import Path

MAGIC_OFFSET, DICOM_MAGIC = 128, b"DICM"
LONGEST_UID = 256  # characters; 64 by the standard, a few more in real files


def series_of(path: Path) -> str | None:
    """Return the SeriesInstanceUID of a DICOM file; None if it cannot be read."""
    import pydicom  # takes 0.3 s, which only DICOM slides need
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    try:
        if not path.is_file():  # opening a pipe would block
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # malformed values elsewhere in the header do not matter
            # pydicom would inflate a whole deflated file, which may be a bomb; OpenSlide reads none.
            if pydicom.filereader.read_file_meta_info(path).TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
                return None
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
            series = str(header.SeriesInstanceUID)
    except Exception:  # a damaged file makes pydicom raise almost anything
        return None
    return series if 0 < len(series) <= LONGEST_UID else None
