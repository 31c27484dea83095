//! What libraries read from the environment alone, and before `main` or as they are loaded.

/// Where Linux says who gets huge pages: `always [madvise] never`.
const HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// Names and values for this machine. Whoever sets one in the environment, wins.
pub fn settings() -> Vec<(&'static str, &'static str)> {
    of(&std::fs::read_to_string(HUGE_PAGES).unwrap_or_default())
}

fn of(huge_pages: &str) -> Vec<(&'static str, &'static str)> {
    let on_request = huge_pages.contains("[madvise]");
    [&COMMON[..], if on_request { &HUGE_TENSORS } else { &NO_HUGE_PAGES }].concat()
}

const COMMON: [(&str, &str); 6] = [
    // Builds of ONNX Runtime may report to their maker, and keep a database in the home folder for it.
    ("ORT_DISABLE_TELEMETRY", "1"),
    // Pictures and tensors come and go: what nobody used for 10 ms goes back (1 s by default).
    ("MIMALLOC_PURGE_DELAY", "10"),
    // ONNX Runtime's, by the system's allocator. Their fixed value turns glibc's growing thresholds off, by which it keeps
    // what a model's load has left.
    ("MALLOC_MMAP_THRESHOLD_", "65536"),
    ("MALLOC_TRIM_THRESHOLD_", "65536"),
    ("MALLOC_TOP_PAD_", "0"),
    // GPUs are numbered as NVML numbers them, not the fastest first.
    ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"),
];

/// Where whoever asks gets pages of 2 MiB: ONNX Runtime's blocks of that size, nothing else. Inference is 2 to 3 % faster
/// (page-layout-640, two sessions), the process no larger. mimalloc asks for all that it holds in one piece: it holds
/// none.
const HUGE_TENSORS: [(&str, &str); 3] =
    [("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"), ("MIMALLOC_ALLOW_THP", "1"), ("MIMALLOC_ARENA_EAGER_COMMIT", "0")];

/// Where everybody gets them, asked for or not, thread stacks and pictures too: a tenth of the process. None, then.
const NO_HUGE_PAGES: [(&str, &str); 1] = [("MIMALLOC_ALLOW_THP", "0")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_asked_for_only_where_nobody_else_gets_them() {
        let asks = |modes| of(modes).contains(&HUGE_TENSORS[0]);
        assert!(asks("always [madvise] never\n"));
        for modes in ["[always] madvise never\n", "always madvise [never]\n", ""] {
            assert!(!asks(modes) && of(modes).contains(&NO_HUGE_PAGES[0]), "{modes:?}");
        }
    }
}
