//! A node with many pods, and somebody who takes an ENI from it or gives it one.

use std::time::Instant;

use aws_cni_lab::pod::Pod;
use aws_cni_lab::vpc::{AttachEni, CreateEni, Eni, EniId, Model, Stages};

use crate::scene::{PATIENCE, Scene};

/// A full m5.large with 20 of its 27 addresses in use.
pub fn busy() -> (Scene, Vec<Pod>) {
    let scene = Scene::new("m5.large");
    let pods = scene.pods("web", 20);
    scene.add(&pods, 20);
    scene.settle_at(27);
    (scene, pods)
}

/// A secondary ENI that pods live on, and those pods.
pub fn in_use<'a>(scene: &Scene, pods: &'a [Pod]) -> (Eni, Vec<&'a Pod>) {
    let lives_on = |eni: &Eni, pod: &&'a Pod| eni.secondary.contains(&pod.address().unwrap());
    let mut enis = scene.attached_enis();
    let used = |eni: &Eni| pods.iter().any(|pod| lives_on(eni, &pod));
    let at = enis[1..].iter().position(used).unwrap() + 1;
    let eni = enis.swap_remove(at);
    let on_it = pods.iter().filter(|pod| lives_on(&eni, pod)).collect();
    (eni, on_it)
}

/// Somebody detaches an ENI, and its link is gone.
pub fn detach(scene: &Scene, eni: &Eni) {
    let attachment = eni.attachment.as_ref().unwrap().id.clone();
    let detached = |model: &mut Model| model.detach_eni(&attachment, Stages::default(), Instant::now());
    scene.lab.cloud().model(detached).unwrap();
    assert!(scene.node.wait_link(eni.mac, false, PATIENCE).unwrap());
}

/// Somebody creates an ENI as the caller wants it and attaches it to the node, at this card and device.
pub fn attach_at(scene: &Scene, (card, device): (u32, u32), more: impl FnOnce(&mut CreateEni)) -> EniId {
    let vpc = scene.lab.vpc();
    let instance = scene.node.instance().clone();
    let mut request = CreateEni::plain(vpc.subnets[0].clone(), vec![vpc.group.clone()]);
    more(&mut request);
    scene.lab.cloud().model(|model| {
        let now = Instant::now();
        let eni = model.create_eni(request, now).unwrap().id.clone();
        let request = AttachEni {
            eni: eni.clone(),
            instance,
            device,
            card,
        };
        model.attach_eni(&request, Stages::default(), now).unwrap();
        eni
    })
}
