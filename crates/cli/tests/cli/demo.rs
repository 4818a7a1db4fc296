//! The demo holds what it promises.

use crate::support::fencepost;

#[test]
fn the_demo_proves_everything_it_says() {
    let said = fencepost(["demo"]).ok();
    assert!(said.contains("All proofs hold"), "{said}");
    assert_eq!(said.matches("proved:").count(), 4, "{said}");
    assert!(said.contains("fenced"), "{said}");
}
