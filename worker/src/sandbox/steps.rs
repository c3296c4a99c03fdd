//! The steps inside the new namespaces, as numbers that a child without an allocator can report, and as words for people.

/// One step. Its number travels over the report pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    ControlGroup,
    Await,
    ControlGroupNamespace,
    UserNamespaces,
    HostName,
    Loopback,
    Routes,
    Private,
    BindWritable,
    Root,
    MountStore,
    BindShell,
    BindDevice,
    MountProc,
    MountSys,
    MountShm,
    MountPts,
    Pivot,
    Detach,
    Session,
    Descriptors,
    CoreLimit,
    ProcessLimit,
    Personality,
    WorkingDirectory,
    User,
    DeathSignal,
    Keyring,
    Capabilities,
    Privileges,
    Filter,
    /// Everything stands; the next system call is `execve`.
    Ready,
    /// The kernel would not execute the builder.
    Execute,
}

impl Step {
    const ALL: [(Self, &'static str); 33] = [
        (Self::ControlGroup, "enter control group"),
        (Self::Await, "wait for the id maps"),
        (Self::ControlGroupNamespace, "enter a control group namespace"),
        (Self::UserNamespaces, "switch nested user namespaces off"),
        (Self::HostName, "set the host name"),
        (Self::Loopback, "bring the loopback device up"),
        (Self::Routes, "set the routes"),
        (Self::Private, "make the mounts private"),
        (Self::BindWritable, "bind directory"),
        (Self::Root, "mount the root file system on"),
        (Self::MountStore, "mount the inputs on"),
        (Self::BindShell, "bind"),
        (Self::BindDevice, "bind device"),
        (Self::MountProc, "mount /proc"),
        (Self::MountSys, "mount /sys"),
        (Self::MountShm, "mount /dev/shm"),
        (Self::MountPts, "mount /dev/pts"),
        (Self::Pivot, "pivot into the root directory"),
        (Self::Detach, "detach the host's mounts"),
        (Self::Session, "start a session"),
        (Self::Descriptors, "arrange the file descriptors"),
        (Self::CoreLimit, "limit core files"),
        (Self::ProcessLimit, "limit processes"),
        (Self::Personality, "set the personality"),
        (Self::WorkingDirectory, "enter /build"),
        (Self::User, "become the build user"),
        (Self::DeathSignal, "ask to die with the worker"),
        (Self::Keyring, "leave the worker's keyring"),
        (Self::Capabilities, "drop capabilities"),
        (Self::Privileges, "renounce new privileges"),
        (Self::Filter, "load the system call filter"),
        (Self::Ready, "start the builder"),
        (Self::Execute, "execute the builder"),
    ];

    /// Returns the step with this number and what it does.
    pub(super) fn numbered(number: u32) -> Option<(Self, &'static str)> {
        Self::ALL.iter().copied().find(|(step, _)| *step as u32 == number)
    }
}

/// What the child tells: a step, which of several things it was about, and the error number (0 for [`Step::Ready`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub step: u32,
    pub index: u32,
    pub errno: i32,
}

/// Bytes of a report: far below what a pipe writes in one piece.
pub(super) const REPORT_BYTES: usize = 12;

impl Report {
    pub(super) fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let mut bytes = [0; REPORT_BYTES];
        bytes[..4].copy_from_slice(&self.step.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.index.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: [u8; REPORT_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self { step: u32::from_ne_bytes([a, b, c, d]), index: u32::from_ne_bytes([e, f, g, h]), errno: i32::from_ne_bytes([i, j, k, l]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_its_number_and_words() {
        for (number, (step, words)) in Step::ALL.iter().enumerate() {
            assert_eq!(*step as usize, number, "{words}");
        }
        assert_eq!(Step::numbered(33), None);
    }

    #[test]
    fn a_report_survives_the_pipe() {
        let report = Report { step: Step::BindDevice as u32, index: 70_000, errno: -2 };
        assert_eq!(Report::from_bytes(report.to_bytes()), report);
    }
}
