// SPDX-License-Identifier: Apache-2.0
//! Reads the end of a file that a container writes: a bounded part, of a regular file only.

use std::fs::OpenOptions;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;

/// The last `max` bytes of a regular file.
///
/// # Errors
/// The file cannot be read, or is a link, a pipe or anything else that a container could have put there.
pub(crate) fn read_tail(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK, opening a pipe waits for its other end.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(max)))?;
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_any_size_or_kind_costs_no_more_than_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (content, expected) in [("", ""), ("abc", "abc"), ("0123456789", "456789")] {
            std::fs::write(at("file"), content).unwrap();
            assert_eq!(read_tail(&at("file"), 6).unwrap(), expected.as_bytes());
        }
        // A terabyte on no disk.
        std::fs::File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_tail(&at("sparse"), 4096).unwrap(), [0; 4096]);
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        assert!(read_tail(&at("link"), 6).is_err());
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(read_tail(&at("pipe"), 6).is_err());
        assert!(read_tail(dir.path(), 6).is_err());
        assert!(read_tail(&at("none"), 6).is_err());
    }
}
