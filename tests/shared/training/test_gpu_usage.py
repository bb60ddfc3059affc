"""Exhausted memory, with the allocator's own error on the CPU and CUDA's texts."""

import pytest
import torch

from shared.errors import UserError
from shared.training.gpu_usage import explain_out_of_memory


def test_the_allocators_error_is_a_sentence_with_the_size_and_the_remedy():
    with (
        pytest.raises(UserError, match=r"memory of the machine .*allocate \d{15,} bytes.*with a lower --tile"),
        explain_out_of_memory("a lower --tile"),
    ):
        torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3 GiB."
        ),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_all_errors_of_a_full_gpu_are_one_sentence(error: RuntimeError):
    with pytest.raises(UserError, match="memory of the GPU ran out") as sentence, explain_out_of_memory("less"):
        raise error
    assert "\n" not in str(sentence.value)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("less"):
        raise RuntimeError("shape '[2]' is invalid for input of size 3")
