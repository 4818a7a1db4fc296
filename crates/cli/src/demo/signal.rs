//! Signals to child processes. The only unsafe code of this crate.

use std::io;

/// The signals that the demo sends; SIGKILL goes through the standard library.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signal {
    /// SIGSTOP: the process does nothing until it is continued, and is not asked.
    Stop,
    /// SIGCONT.
    Continue,
}

/// Sends a signal to a child of this process that has not been waited for.
#[cfg(unix)]
#[allow(unsafe_code)]
pub(crate) fn send(pid: u32, signal: Signal) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    if pid <= 0 {
        // 0 and negative numbers stand for groups of processes.
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let signal = match signal {
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
    };
    // SAFETY: kill(2) takes two integers and touches no memory of this process. `pid` is positive, so it names one
    // process, and that one is our child: its id is not given to another before we have waited for it.
    match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// There is nothing like it elsewhere.
#[cfg(not(unix))]
pub(crate) fn send(_pid: u32, _signal: Signal) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
