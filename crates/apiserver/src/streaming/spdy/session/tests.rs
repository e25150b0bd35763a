// SPDX-License-Identifier: Apache-2.0
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;

use super::super::frame::{self, Decoder, Encoder, Frame};
use super::session;

fn open(encoder: &mut Encoder, out: &mut BytesMut, stream: u32) {
    encoder.syn_stream(out, stream, false, &vec![("streamtype".into(), format!("s{stream}"))]);
}

#[tokio::test(start_paused = true)]
async fn streams_echo_and_half_close() {
    let (client, server) = tokio::io::duplex(1 << 20);
    let (mut session, driver) = session(server);
    let echo = async {
        let mut stream = session.accept().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("s1"));
        while let Some(bytes) = stream.read().await {
            stream.write(bytes).await.unwrap();
        }
        stream.finish().await.unwrap();
        drop(stream);
        let cancelled = session.accept().await.unwrap();
        drop(cancelled);
        session.close().await;
    };
    let (reader, mut writer) = tokio::io::split(client);
    let peer = async {
        let (mut encoder, mut out) = (Encoder::new().unwrap(), BytesMut::new());
        open(&mut encoder, &mut out, 1);
        frame::data_head(&mut out, 1, true, 5);
        out.extend_from_slice(b"hello");
        frame::ping(&mut out, 1);
        open(&mut encoder, &mut out, 3);
        writer.write_all(&out).await.unwrap();
        let mut decoder = Decoder::new(reader);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next().await.unwrap() {
            frames.push(frame);
        }
        frames
    };
    let (driven, (), frames) = tokio::join!(driver, echo, peer);
    driven.unwrap();
    let data = |fin, bytes: &'static [u8]| Frame::Data { stream: 1, fin, bytes: Bytes::from_static(bytes) };
    for expected in [
        Frame::SynReply { stream: 1, fin: false },
        data(false, b"hello"),
        data(true, b""),
        Frame::Ping(1),
        Frame::SynReply { stream: 3, fin: false },
        Frame::Reset { stream: 3 },
    ] {
        assert!(frames.contains(&expected), "{expected:?} in {frames:?}");
    }
    assert_eq!(frames.last(), Some(&Frame::GoAway));
}

#[tokio::test(start_paused = true)]
async fn a_peers_window_is_obeyed_once_it_keeps_one() {
    for keeps in [false, true] {
        let (client, server) = tokio::io::duplex(1 << 20);
        let (mut session, driver) = session(server);
        let (reader, mut writer) = tokio::io::split(client);
        let serve = async {
            let stream = session.accept().await.unwrap();
            let wrote = stream.write(vec![1; 300_000].into());
            let in_time = tokio::time::timeout(Duration::from_secs(5), wrote).await.is_ok();
            assert_eq!(in_time, !keeps, "window kept: {keeps}");
            stream.finish().await.unwrap();
            session.close().await;
        };
        let peer = async {
            let (mut encoder, mut out) = (Encoder::new().unwrap(), BytesMut::new());
            if keeps {
                frame::settings(&mut out, 1000);
            }
            open(&mut encoder, &mut out, 1);
            if keeps {
                frame::window_update(&mut out, 1, 500);
            }
            writer.write_all(&out).await.unwrap();
            let mut decoder = Decoder::new(reader);
            let mut received = 0;
            while let Some(frame) = decoder.next().await.unwrap() {
                if let Frame::Data { bytes, .. } = frame {
                    received += bytes.len();
                }
            }
            assert_eq!(received, if keeps { 1500 } else { 300_000 });
        };
        let (driven, (), ()) = tokio::join!(driver, serve, peer);
        driven.unwrap();
    }
}
