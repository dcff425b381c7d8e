//! Addresses that have to be fetched first: nobody fails for something that is on its way.

use crate::scene::Scene;

#[test]
fn a_pod_gets_an_address_and_gives_it_back() {
    let scene = Scene::new("m5.large");
    let pods = scene.pods("web", 1);
    scene.add(&pods, 1);
    scene.check(&pods);
    scene.del(&pods, 1);
    scene.check(&[]);
}

#[test]
fn every_address_of_an_instance_can_be_had_at_once() {
    let scene = Scene::new("m5.large");
    let pods = scene.pods("web", 27);
    scene.add(&pods, 27);
    scene.settle();
    scene.check(&pods);
}
