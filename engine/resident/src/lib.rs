//! Memory that a service holds while it rests, and need not.
//!
//! The kernel maps a program's code in windows around what is run, and never takes it back while nobody else wants the memory:
//! what ran once, such as the start, stays for good. This crate lets go of it. It is the only one here with `unsafe` code,
//! one call, and does nothing else.

use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Lets go of the pages of this program's code. What runs next is mapped again, from the page cache or the file.
///
/// Gives how many bytes of address space that was about.
///
/// # Errors
///
/// `/proc` is not there, or the kernel refuses.
pub fn let_go_of_code() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let mut bytes = 0;
    for range in code_of(&program, &fs::read("/proc/self/maps")?) {
        bytes += range.len();
        let_go(&range)?;
    }
    Ok(bytes)
}

#[expect(unsafe_code, reason = "no safe interface offers this call, and it is argued below")]
fn let_go(code: &Range<usize>) -> io::Result<()> {
    use rustix::mm::{Advice, madvise};
    let start = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: the range is a mapping of this program's file that can be read and run and not be written, so no page of it differs
    // from the file (relocations are elsewhere: this program has none in its code). The kernel drops the pages and maps the same
    // bytes again on the next access, whichever thread runs there; nothing that Rust refers to moves or changes.
    unsafe { madvise(start, code.len(), Advice::LinuxDontNeed) }?;
    Ok(())
}

/// Where a process keeps the code of `program`, by its `/proc/…/maps`: what it may read and run, and never write.
fn code_of(program: &Path, maps: &[u8]) -> Vec<Range<usize>> {
    let line = |line: &[u8]| -> Option<Range<usize>> {
        // Address range, rights, offset, device, inode, and padded with blanks, the path.
        let mut words = line.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let (range, rights) = (words.next()?, words.next()?);
        let path = line.iter().position(|byte| *byte == b'/').map(|at| &line[at..])?;
        if rights != b"r-xp" || path != program.as_os_str().as_bytes() {
            return None;
        }
        let (start, end) = std::str::from_utf8(range).ok()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(address(start)?..address(end)?)
    };
    maps.split(|byte| *byte == b'\n').filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &[u8] = b"\
55d0c0000000-55d0c0200000 r--p 00000000 fe:00 1234                       /opt/a program/farrier
55d0c0200000-55d0c1c00000 r-xp 00200000 fe:00 1234                       /opt/a program/farrier
55d0c1c00000-55d0c1d00000 rw-p 01c00000 fe:00 1234                       /opt/a program/farrier
7f0000000000-7f0000100000 r-xp 00000000 fe:00 77                         /usr/lib/libc.so.6
7f0000200000-7f0000300000 rwxp 00000000 00:00 0
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn only_what_is_run_and_never_written_is_let_go() {
        let code = code_of(Path::new("/opt/a program/farrier"), MAPS);
        assert_eq!((code.len(), code.first()), (1, Some(&(0x55d0_c020_0000..0x55d0_c1c0_0000))));
        assert!(code_of(Path::new("/opt/farrier"), MAPS).is_empty());
        assert!(code_of(Path::new("/opt/a program/farrier (deleted)"), MAPS).is_empty());
    }

    /// Resident bytes of this program's own code.
    fn resident() -> usize {
        let program = fs::read_link("/proc/self/exe").unwrap_or_default();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let (mut ours, mut bytes) = (false, 0);
        for line in smaps.lines() {
            if line.contains(" r-xp ") {
                ours = line.ends_with(&*program.to_string_lossy());
            } else if line.contains("-p ") || line.contains("-s ") {
                ours = false;
            } else if let (true, Some(size)) = (ours, line.strip_prefix("Rss:")) {
                let size = size.trim().trim_end_matches(" kB");
                bytes += size.parse::<usize>().unwrap_or_default() * 1024;
            }
        }
        bytes
    }

    #[test]
    fn what_ran_is_let_go_and_runs_again() {
        let before = resident();
        let sorted = |seed: u64| {
            let mut numbers: Vec<u64> = (0..1000).map(|n: u64| n.wrapping_mul(seed) % 997).collect();
            numbers.sort_unstable();
            format!("{numbers:?}")
        };
        let first = sorted(7919);
        let bytes = let_go_of_code().unwrap_or_default();
        let after = resident();
        assert!(bytes > 0 && after < before, "{bytes} bytes; {before} resident before, {after} after");
        assert_eq!(sorted(7919), first);
    }
}
