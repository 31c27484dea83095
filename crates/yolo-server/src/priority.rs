//! What gives way when cores are scarce: work on pictures to the handlers, so that a refusal, or an answer from the cache,
//! is quick however busy the engine is.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// A third of the usual weight. More of it gains no more (cache hits, p99 at a utilisation of 0.22: a median of 2.0 ms in 18
/// runs while only the engine had 5; 1.5 and 1.5 ms with 5 for decoders too, 1.1 and 1.6 ms with 19 for both), and where no
/// container keeps other processes apart, those would starve the engine.
const NICENESS: i32 = 5;
/// How long a handler asks to run at a time. Since Linux 6.12 who asks for less than whoever runs gets the core at once; the
/// others wait for the end of his slice, 1.4 ms on two cores. The least that can be asked for.
const SLICE: Duration = Duration::from_micros(100);

const THIS_THREAD: libc::pid_t = 0;
const FLAGS: libc::c_uint = 0;

thread_local! {
    static LOWERED: Cell<bool> = const { Cell::new(false) };
}

/// Lets this thread, and those that it starts, run as soon as they have something to do.
pub fn answer_at_once() {
    if let Err(error) = ask_for(SLICE) {
        tracing::debug!(%error, "Answers wait for the engine's time slices.");
    }
}

/// Lets this thread, for good, run after those that answer requests.
pub fn give_way() {
    if LOWERED.replace(true) {
        return;
    }
    // On Linux niceness and slice belong to the thread, which may have them from the one that started it. Refused if the
    // whole process is nicer: then that remains.
    let nice = rustix::process::setpriority_process(None, NICENESS).map_err(io::Error::from);
    let slice = ask_for(Duration::ZERO);
    if let Err(error) = nice.and(slice) {
        tracing::debug!(%error, "A thread that works on pictures keeps its priority.");
    }
}

/// Sets this thread's time slice; zero: the system's. A kernel before 6.12 ignores it.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn ask_for(slice: Duration) -> io::Result<()> {
    let mut attributes = attributes()?;
    attributes.sched_runtime = u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX);
    // SAFETY: the kernel reads as many bytes as `size` says, which it has itself written.
    done(unsafe { libc::syscall(libc::SYS_sched_setattr, THIS_THREAD, &raw const attributes, FLAGS) })
}

/// How this thread is scheduled.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn attributes() -> io::Result<libc::sched_attr> {
    let mut attributes = MaybeUninit::<libc::sched_attr>::zeroed();
    // SAFETY: the kernel writes at most as many bytes as it is told, and every value of the fields is one.
    unsafe {
        let size = size_of::<libc::sched_attr>();
        done(libc::syscall(libc::SYS_sched_getattr, THIS_THREAD, attributes.as_mut_ptr(), size, FLAGS))?;
        Ok(attributes.assume_init())
    }
}

fn done(status: libc::c_long) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_way_has_neither_the_weight_nor_the_slice_of_who_started_it() {
        let of_this_thread =
            || attributes().map(|attributes| (attributes.sched_nice, attributes.sched_runtime)).unwrap();
        std::thread::spawn(move || {
            let (nice, slice) = of_this_thread();
            answer_at_once();
            let short = of_this_thread();
            let engine = std::thread::spawn(move || {
                give_way();
                of_this_thread()
            });
            // Zero where the kernel has no such slices.
            assert_eq!(short, (nice, if slice == 0 { 0 } else { 100_000 }));
            assert_eq!(engine.join().unwrap(), (nice.max(NICENESS), slice));
        })
        .join()
        .unwrap();
    }
}
