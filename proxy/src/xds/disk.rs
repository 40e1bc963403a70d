//! The last good state on disk, for a start without a control plane.
//!
//! One file: a line with format, node and checksum, then the resources as they came. Written
//! aside and renamed, so that a crash leaves the old file or the new one. A file that is
//! damaged, of another format or of another node is refused with the reason, never half used.

use std::io::{self, Write as _};
use std::path::Path;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millrace_xds::{TypeUrl, Version};

#[cfg(test)]
mod tests;

/// Format of the file; raised with every change to it.
const FORMAT: &str = "millrace-state/1";
/// Largest file that is read.
const MAX_SIZE: u64 = 1 << 30;

/// One saved resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Its type.
    pub type_url: TypeUrl,
    /// Its name.
    pub name: String,
    /// The version it had.
    pub version: String,
    /// The encoded message.
    pub body: Bytes,
}

/// Why a saved state is not used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be read or written.
    #[error("cannot access the saved state")]
    Io(#[from] io::Error),
    /// Another format.
    #[error("the saved state has the unknown format {0:?}")]
    Format(String),
    /// The content is not what was written.
    #[error("the saved state is damaged: {0}")]
    Damaged(&'static str),
    /// It is another node's.
    #[error("the saved state belongs to node {found:?}, this is {expected:?}")]
    Node {
        /// The node that wrote it.
        found: String,
        /// This node.
        expected: String,
    },
}

/// Writes the state of `node` to `path`.
///
/// # Errors
/// When the file cannot be written; an older one then stays.
pub fn save(path: &Path, node: &str, resources: &[Saved]) -> Result<(), DiskError> {
    let body = encode(resources)?;
    let checksum = Version::of(&body);
    let node = node.replace(char::is_whitespace, "_");
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let aside = path.with_extension("new");
    let mut file = std::fs::File::create(&aside)?;
    writeln!(file, "{FORMAT} {node} {checksum}")?;
    file.write_all(&body)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)?;
    if let Some(directory) = path.parent() {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Reads the state of `node` from `path`; `None` when there is no file.
///
/// # Errors
/// When the file is not usable; the message says why.
pub fn load(path: &Path, node: &str) -> Result<Option<Vec<Saved>>, DiskError> {
    let length = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if length > MAX_SIZE {
        return Err(DiskError::Damaged("it is too large"));
    }
    let content = std::fs::read(path)?;
    parse(&content, node).map(Some)
}

/// Reads the content of a file; any bytes may come in.
///
/// # Errors
/// When they are not a state that this program wrote for `node`.
pub fn parse(content: &[u8], node: &str) -> Result<Vec<Saved>, DiskError> {
    let end = content
        .iter()
        .take(4096)
        .position(|b| *b == b'\n')
        .ok_or(DiskError::Damaged("it has no header"))?;
    let header = std::str::from_utf8(&content[..end])
        .map_err(|_| DiskError::Damaged("its header is not text"))?;
    let body = &content[end + 1..];
    let mut parts = header.split(' ');
    let format = parts.next().unwrap_or_default();
    if format != FORMAT {
        return Err(DiskError::Format(format.to_owned()));
    }
    let (Some(found), Some(checksum), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(DiskError::Damaged("its header is incomplete"));
    };
    let expected = node.replace(char::is_whitespace, "_");
    if found != expected {
        return Err(DiskError::Node {
            found: found.to_owned(),
            expected,
        });
    }
    if Version::of(body).as_str() != checksum {
        return Err(DiskError::Damaged("its checksum is wrong"));
    }
    decode(Bytes::copy_from_slice(body))
}

/// Four length-prefixed fields per resource.
fn encode(resources: &[Saved]) -> Result<Bytes, DiskError> {
    let mut out = BytesMut::new();
    for resource in resources {
        let fields: [&[u8]; 4] = [
            resource.type_url.as_str().as_bytes(),
            resource.name.as_bytes(),
            resource.version.as_bytes(),
            &resource.body,
        ];
        for field in fields {
            let length = u32::try_from(field.len())
                .map_err(|_| io::Error::other("a resource exceeds 4 GiB"))?;
            out.put_u32(length);
            out.put_slice(field);
        }
    }
    Ok(out.freeze())
}

fn decode(mut body: Bytes) -> Result<Vec<Saved>, DiskError> {
    let mut resources = Vec::new();
    while body.has_remaining() {
        let type_url = TypeUrl::from(text(&mut body)?.as_str());
        resources.push(Saved {
            type_url,
            name: text(&mut body)?,
            version: text(&mut body)?,
            body: field(&mut body)?,
        });
    }
    Ok(resources)
}

fn text(body: &mut Bytes) -> Result<String, DiskError> {
    let bytes = field(body)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| DiskError::Damaged("a name is not text"))
}

fn field(body: &mut Bytes) -> Result<Bytes, DiskError> {
    const SHORT: DiskError = DiskError::Damaged("it ends early");
    if body.remaining() < 4 {
        return Err(SHORT);
    }
    let length = body.get_u32() as usize;
    if body.remaining() < length {
        return Err(SHORT);
    }
    Ok(body.split_to(length))
}
