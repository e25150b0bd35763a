// SPDX-License-Identifier: Apache-2.0
//! Frames of `meltemi-channels/1`: `[channel u8][length u32, big endian][payload]`.

use std::io;

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
pub(super) const CLOSE: u8 = 255;

/// A frame larger than this is a fault of the other side.
const MAX_PAYLOAD: usize = 1 << 20;

/// The next frame; `None` at the end.
pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R) -> io::Result<Option<(u8, Bytes)>> {
    let mut head = [0; 5];
    match reader.read_exact(&mut head[..1]).await {
        Ok(_) => {}
        // TLS without close_notify is an end as well: what matters is whether the status has come.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(e) => return Err(e),
    }
    reader.read_exact(&mut head[1..]).await?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > MAX_PAYLOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("frame of {length} bytes")));
    }
    let mut payload = vec![0; length];
    reader.read_exact(&mut payload).await?;
    Ok(Some((head[0], payload.into())))
}

/// Writes a frame; a payload that is too large goes out in several.
pub(super) async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    channel: u8,
    payload: &[u8],
) -> io::Result<()> {
    let mut rest = payload;
    loop {
        let (part, after) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        writer.write_u8(channel).await?;
        writer.write_u32(length).await?;
        writer.write_all(part).await?;
        rest = after;
        if rest.is_empty() {
            return writer.flush().await;
        }
    }
}

/// The status for a node that went away without one.
pub(super) fn lost_status(reason: &str) -> Bytes {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "InternalError",
        "message": format!("the connection to the node ended before the command did: {reason}"), "code": 500})
    .to_string()
    .into()
}
