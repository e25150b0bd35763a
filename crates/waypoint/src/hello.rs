// SPDX-License-Identifier: Apache-2.0
//! The first message of a TLS client (ClientHello, RFC 8446 §4.1.2) where TLS does not end at this proxy: read for the host that
//! it names (SNI) and handed on byte by byte. What is judged is what the backend reads.

use std::io::{Error, ErrorKind};
use std::sync::Arc;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that a client may send before its first message is whole; it is one message of the handshake, and those have a length
/// of three bytes.
const MAX_HELLO: usize = 64 * 1024;

/// Reads until the client's first message is whole; `bytes` gets all that was read. Returns the host that it names.
///
/// # Errors
/// The connection failed, or these bytes are no such message.
pub(crate) async fn read<IO>(io: &mut IO, bytes: &mut Vec<u8>) -> std::io::Result<Option<Arc<str>>>
where
    IO: AsyncRead + Unpin,
{
    let mut acceptor = Acceptor::default();
    while bytes.len() < MAX_HELLO {
        let before = bytes.len();
        if io.read_buf(bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let mut new = &bytes[before..];
        while !new.is_empty() {
            acceptor.read_tls(&mut new)?;
            match acceptor.accept() {
                Ok(Some(accepted)) => return Ok(accepted.client_hello().server_name().map(normal)),
                Ok(None) => {}
                Err((error, _)) => return Err(Error::new(ErrorKind::InvalidData, error)),
            }
        }
    }
    Err(Error::new(ErrorKind::InvalidData, "the client's first message is too long"))
}

/// A host as policies and routes compare it: names differ neither by case nor by a dot at their end.
pub(crate) fn normal(host: &str) -> Arc<str> {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase().into()
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn client_hello(host: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The hello with its message in records of `size` bytes.
    fn in_records(hello: &[u8], size: usize) -> Vec<u8> {
        let message = &hello[5..];
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).unwrap().to_be_bytes();
            [&[22, 3, 1][..], &length, part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    async fn host_of(sent: &[u8], at_once: usize) -> std::io::Result<Option<Arc<str>>> {
        let (mut near, mut far) = tokio::io::duplex(at_once);
        let mut bytes = Vec::new();
        let write = async {
            let _ = far.write_all(sent).await;
            drop(far);
        };
        let (read, ()) =
            tokio::join!(async { read(&mut near, &mut bytes).await.inspect_err(|_| drop(near)) }, write);
        if read.is_ok() {
            assert!(sent.starts_with(&bytes), "what was read is handed on as it came");
        }
        read
    }

    #[tokio::test]
    async fn the_host_is_found_however_the_hello_comes() {
        let hello = client_hello("A.Example");
        for (sent, at_once) in [
            (hello.clone(), 4096),
            (hello.clone(), 1),
            (in_records(&hello, 100), 4096),
            (in_records(&hello, 7), 3),
            ([&hello[..], b"early data"].concat(), 8192),
        ] {
            assert_eq!(host_of(&sent, at_once).await.unwrap().as_deref(), Some("a.example"));
        }
        assert_eq!(host_of(&client_hello("10.0.0.1"), 4096).await.unwrap(), None, "an address is no name");
    }

    #[tokio::test]
    async fn what_is_no_hello_is_refused() {
        let hello = client_hello("a.example");
        let endless = in_records(&[&[0; 5][..], &[1, 0xff, 0xff, 0xff], &[0; 100_000]].concat(), 16_000);
        for sent in
            [b"GET / HTTP/1.1\r\n\r\n".to_vec(), hello[..hello.len() - 1].to_vec(), Vec::new(), endless]
        {
            assert!(host_of(&sent, 8192).await.is_err(), "{} bytes", sent.len());
        }
    }
}
