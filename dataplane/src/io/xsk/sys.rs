//! The system calls behind AF_XDP, with typed arguments and checked results. No policy.
#![expect(unsafe_code, reason = "system calls and mappings have no safe wrapper")]

use std::ffi::c_int;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};

/// Descriptors of one `sendto` in copy mode, set and read as `u32` (`XDP_MAX_TX_SKB_BUDGET`, linux/if_xdp.h;
/// since Linux 6.17).
pub(super) const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// Pages shared with the kernel or with another thread, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory that belongs to no thread; those who read and write it through `start` answer
// for their own accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; `&Mapping` gives out only the address and the length.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset` on, shared and writable, with all pages faulted in.
    pub(super) fn of(fd: BorrowedFd<'_>, len: usize, offset: libc::off_t) -> io::Result<Self> {
        Self::map(fd.as_raw_fd(), len, offset, libc::MAP_SHARED | libc::MAP_POPULATE)
    }

    /// Maps `len` bytes of fresh zeroed memory that has no file.
    #[cfg(test)]
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        Self::map(-1, len, 0, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS)
    }

    fn map(fd: RawFd, len: usize, offset: libc::off_t, flags: c_int) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Its first byte; page-aligned.
    #[inline]
    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length in bytes.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map`, and whoever uses it borrows or shares `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Memory without a name that another process can map by its descriptor. `flags` as of memfd_create(2).
pub(super) fn memfd(len: usize, flags: libc::c_uint) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string, and the call reads nothing else.
    let fd = owned(unsafe { libc::memfd_create(c"weir-umem".as_ptr(), flags | libc::MFD_CLOEXEC) })?;
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: no pointer is passed.
    checked(unsafe { libc::ftruncate(fd.as_raw_fd(), len) })?;
    Ok(fd)
}

/// A new AF_XDP socket.
pub(super) fn socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    owned(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })
}

/// A value that the kernel reads from, or writes to, a socket option.
///
/// # Safety
/// Any bytes are a valid value, and the type has no padding that the kernel's structure has not.
pub(super) unsafe trait OptionValue: Copy {}
// SAFETY: plain integers.
unsafe impl OptionValue for u32 {}
// SAFETY: plain integers, laid out as in linux/if_xdp.h.
unsafe impl OptionValue for libc::xdp_umem_reg {}
// SAFETY: as above.
unsafe impl OptionValue for libc::xdp_mmap_offsets {}
// SAFETY: as above.
unsafe impl OptionValue for libc::xdp_statistics {}
// SAFETY: as above.
unsafe impl OptionValue for libc::xdp_options {}

/// Sets an option of level `SOL_XDP`.
pub(super) fn set_option<T: OptionValue>(fd: BorrowedFd<'_>, name: c_int, value: &T) -> io::Result<()> {
    set(fd, libc::SOL_XDP, name, value)
}

/// Sets an option that sockets of all kinds have (`SOL_SOCKET`).
pub(super) fn set_socket_option(fd: BorrowedFd<'_>, name: c_int, value: u32) -> io::Result<()> {
    set(fd, libc::SOL_SOCKET, name, &value)
}

fn set<T: OptionValue>(fd: BorrowedFd<'_>, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes at most from `value`.
    checked(unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, ptr::from_ref(value).cast(), length_of::<T>())
    })
}

/// Reads an option of level `SOL_XDP`. An older kernel that knows only the first fields of `T` leaves the others 0;
/// the length that it wrote is returned too.
pub(super) fn option<T: OptionValue>(fd: BorrowedFd<'_>, name: c_int) -> io::Result<(T, usize)> {
    get(fd, libc::SOL_XDP, name)
}

/// Reads an option that sockets of all kinds have (`SOL_SOCKET`).
pub(super) fn socket_option(fd: BorrowedFd<'_>, name: c_int) -> io::Result<u32> {
    get(fd, libc::SOL_SOCKET, name).map(|(value, _)| value)
}

fn get<T: OptionValue>(fd: BorrowedFd<'_>, level: c_int, name: c_int) -> io::Result<(T, usize)> {
    // SAFETY: by the contract of `OptionValue` zeroes are a valid value.
    let mut value: T = unsafe { std::mem::zeroed() };
    let mut len = length_of::<T>();
    // SAFETY: the kernel writes `len` bytes at most to `value`, and any bytes are a valid value.
    checked(unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, name, ptr::from_mut(&mut value).cast(), &mut len)
    })?;
    Ok((value, len as usize))
}

/// Binds an AF_XDP socket to a queue.
pub(super) fn bind(fd: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    // SAFETY: the kernel reads one `sockaddr_xdp`.
    checked(unsafe {
        libc::bind(fd.as_raw_fd(), ptr::from_ref(address).cast(), length_of::<libc::sockaddr_xdp>())
    })
}

/// Makes the kernel look at the TX ring.
#[inline]
pub(super) fn wake_tx(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: an empty message without an address.
    let sent = unsafe { libc::sendto(fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes the driver look at the fill ring.
#[inline]
pub(super) fn wake_rx(fd: BorrowedFd<'_>) {
    // What it says does not matter: frames that came are seen in the RX ring.
    // SAFETY: a buffer of no bytes and no place for an address.
    unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
            ptr::null_mut(),
        )
    };
}

/// Waits until one of `fds` has something, for `timeout_ms` at most. A signal ends the wait too.
pub(super) fn poll(fds: &mut [libc::pollfd], timeout_ms: c_int) -> io::Result<()> {
    // SAFETY: the kernel reads and writes the given number of entries.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    match checked(ready) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        result => result,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the sizes of a few small structures")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn checked(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn owned(fd: c_int) -> io::Result<OwnedFd> {
    checked(fd)?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
