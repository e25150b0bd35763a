// SPDX-License-Identifier: Apache-2.0
//! Several streams over one connection: `[channel u8][length u32 BE][payload]` both ways.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The protocol's name in the upgrade.
pub(super) const PROTOCOL: &str = "meltemi-channels/1";
pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// Its payload is one byte: the channel on which no more will come.
pub(super) const HALF_CLOSE: u8 = 255;
const MAX_FRAME: u32 = 1 << 20;

/// The next frame; `None` at the end.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(u8, Bytes)>> {
    let mut header = [0; 5];
    match from.read_exact(&mut header).await {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame longer than 1 MiB"));
    }
    let mut payload = vec![0; length as usize];
    from.read_exact(&mut payload).await?;
    Ok(Some((header[0], payload.into())))
}

/// Sends a frame.
pub(super) async fn write(to: &mut (impl AsyncWrite + Unpin), channel: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = BytesMut::with_capacity(payload.len() + 5);
    frame.put_u8(channel);
    frame.put_u32(u32::try_from(payload.len()).map_err(io::Error::other)?);
    frame.put_slice(payload);
    to.write_all(&frame).await?;
    to.flush().await
}
