// SPDX-License-Identifier: Apache-2.0
//! Random bytes as messages: refused or read, never more; what is read round-trips.

use meltemi_wire::convert::{self, Address};
use meltemi_wire::zds;
use proptest::prelude::*;

proptest! {
    #[test]
    fn fuzz_messages(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(policy) = convert::policy(&bytes)
            && let Ok(again) = convert::authorization(&policy)
        {
            prop_assert!(convert::policy(&again).is_ok());
        }
        if let Ok(address) = Address::decode(&bytes) {
            prop_assert_eq!(Address::decode(&address.encode()), Ok(address));
        }
        let _ = zds::Request::decode(&bytes);
        let _ = zds::read_ack(&bytes);
    }
}
