// SPDX-License-Identifier: Apache-2.0
//! Messages: policies, workloads and services, layer 7 documents, ZDS.

use meltemi_model::l7::{HttpPolicy, Jwt, Listener, Route, Settings, TlsSecret};
use meltemi_policy::ValidPolicy;
use meltemi_wire::convert::{self, Address};
use meltemi_wire::zds;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// `istio.security.Authorization`.
pub fn authorization(data: &[u8]) {
    let Ok(policy) = convert::policy(data) else { return };
    let Ok(valid) = ValidPolicy::new(policy) else { return };
    // What matches nothing has no form on the wire but the one that it came in.
    if let Ok(bytes) = convert::authorization(&valid) {
        let again = convert::policy(&bytes).expect("what is written can be read");
        assert_eq!(convert::authorization(&again).expect("and written again"), bytes);
    }
}

/// `istio.workload.Address`.
pub fn address(data: &[u8]) {
    let Ok(address) = Address::decode(data) else { return };
    let bytes = address.encode();
    assert_eq!(Address::decode(&bytes).as_ref(), Ok(&address));
    assert_eq!(address.encode(), bytes, "the same value is always the same bytes");
}

/// `meltemi.v1`, after a byte that says which.
pub fn document(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    fn again<T: Serialize + DeserializeOwned + PartialEq>(data: &[u8]) {
        if let Ok(value) = convert::decode_l7::<T>(data) {
            let bytes = convert::encode_l7(&value).expect("what is read can be written");
            assert!(convert::decode_l7::<T>(&bytes).is_ok_and(|again| again == value));
        }
    }
    match kind % 6 {
        0 => again::<HttpPolicy>(data),
        1 => again::<Route>(data),
        2 => again::<Listener>(data),
        3 => again::<Jwt>(data),
        4 => again::<Settings>(data),
        _ => again::<TlsSecret>(data),
    }
}

/// Messages between the runner (or a CNI agent) and the node proxy.
pub fn zds(data: &[u8]) {
    if let Ok(request) = zds::Request::decode(data) {
        assert_eq!(zds::Request::decode(&request.encode()).as_ref(), Ok(&request));
    }
    let _ = (zds::read_ack(data), zds::read_hello(data));
}
