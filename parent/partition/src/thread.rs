//! How the kernel schedules a thread.

use std::io;

/// Has the calling thread wait for its turn when it wakes (`SCHED_BATCH`, sched(7)), instead of displacing a thread that runs, such as
/// a virtual processor; or, when `patient` is off, be scheduled as others are.
///
/// # Errors
/// What the kernel says; everybody may do this with an own thread.
pub fn set_patient(patient: bool) -> io::Result<()> {
    let policy = if patient { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    // SAFETY: all-zero is a valid value of this plain structure.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 0;
    // SAFETY: the call reads `parameters`, which lives; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_set_and_taken_back() {
        // SAFETY: it only asks about the calling thread.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        set_patient(true).unwrap();
        assert_eq!(policy(), libc::SCHED_BATCH);
        set_patient(false).unwrap();
        assert_eq!(policy(), libc::SCHED_OTHER);
    }
}
