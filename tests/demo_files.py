"""Files of the teaching world, read without the product's own reader."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np

from havir_explorer.data.demo import anatomy

SUBJECTS = ("subj01", "subj02")
BETAS = "nsddata_betas/ppdata/{}/func1pt8mm/betas_fithrf_GLMdenoise_RR"


def volume(world, subject, name):
    return np.asarray(nib.load(world / "nsddata/ppdata" / subject / "func1pt8mm" / f"{name}.nii.gz").dataobj)


def betas(world, subject, session, flat_index):
    x, y, z = np.unravel_index(flat_index, anatomy.SHAPE)
    with h5py.File(world / BETAS.format(subject) / f"betas_session{session:02d}.hdf5") as file:
        return np.stack([file["betas"][:, k, j, i] for i, j, k in zip(x, y, z, strict=True)], axis=1)
