//! Keys and values as the user gives them: literally, in hexadecimal, from a file or from standard input.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;

use super::failure::{Failure, file_error};
use crate::rpc::validate;
use crate::types::limits::MAX_VALUE_BYTES;
use crate::{Error, Result};

/// A key: the argument's bytes, or with `hex` what its digits say; checked for its length.
pub fn key(argument: &OsStr, hex: bool) -> Result<Bytes> {
    let key = bound(argument, hex)?;
    validate::key(&key)?;
    Ok(key)
}

/// A prefix or the bound of a range: like a key, but it may be empty.
pub fn bound(argument: &OsStr, hex: bool) -> Result<Bytes> {
    let raw = argument.as_encoded_bytes();
    if hex { decode_hex(raw, "key") } else { Ok(Bytes::copy_from_slice(raw)) }
}

/// A value: `-` is standard input, `@FILE` a file's bytes, `@@…` a value that begins with one `@`; anything
/// else stands for itself. With `hex`, the bytes so got are hexadecimal digits.
pub fn value(argument: &OsStr, hex: bool) -> Result<Bytes, Failure> {
    let raw = argument.as_encoded_bytes();
    let from_outside = if raw == b"-" {
        Some(
            read_limited(io::stdin().lock(), hex)
                .map_err(|error| file_error(Path::new("standard input"), "read", &error))?,
        )
    } else if raw.starts_with(b"@") && !raw.starts_with(b"@@") {
        // Safe on Unix: a path is the same bytes.
        let path = OsString::from(std::os::unix::ffi::OsStrExt::from_bytes(&raw[1..]) as &OsStr);
        let path = Path::new(&path);
        let file = std::fs::File::open(path).map_err(|error| file_error(path, "opened", &error))?;
        Some(read_limited(file, hex).map_err(|error| file_error(path, "read", &error))?)
    } else {
        None
    };
    match from_outside {
        Some(bytes) if hex => Ok(decode_hex(bytes.trim_ascii(), "value")?),
        Some(bytes) => Ok(bytes.into()),
        None => {
            let text = if raw.starts_with(b"@@") { &raw[1..] } else { raw };
            Ok(if hex { decode_hex(text, "value")? } else { Bytes::copy_from_slice(text) })
        }
    }
}

/// Bytes from hexadecimal digits.
pub fn decode_hex(digits: &[u8], what: &str) -> Result<Bytes> {
    hex::decode(digits).map(Bytes::from).map_err(|error| {
        Error::invalid(format!(
            "the {what} is not hexadecimal ({error}): with --hex give pairs of the digits 0-9 and a-f"
        ))
    })
}

/// Reads at most one byte more than a value may have, so that the store can refuse it by its size.
fn read_limited(source: impl Read, hex: bool) -> io::Result<Vec<u8>> {
    let limit = if hex { 2 * MAX_VALUE_BYTES + 4 } else { MAX_VALUE_BYTES + 1 };
    let mut bytes = Vec::new();
    source.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_arguments_and_files() {
        let of = |text: &str, hex| value(OsStr::new(text), hex);
        assert!(key(OsStr::new(""), false).is_err() && bound(OsStr::new(""), false).is_ok());
        assert_eq!(of("plain", false).expect("valid"), "plain");
        assert_eq!(of("@@at", false).expect("valid"), "@at");
        assert_eq!(of("00ff", true).expect("valid"), &b"\x00\xff"[..]);
        assert!(of("0", true).is_err() && of("@/no/such/file", false).is_err());
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), "6162\n").expect("written");
        let argument = format!("@{}", file.path().display());
        assert_eq!(of(&argument, false).expect("valid"), "6162\n");
        assert_eq!(of(&argument, true).expect("valid"), "ab");
    }
}
