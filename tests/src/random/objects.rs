//! A world as the list of its objects, and back.

use portcullis::model::{Object, World};

/// Every object of a world, by kind and name.
pub fn of(world: &World) -> Vec<Object> {
    // Taken apart, so that a new kind cannot be forgotten.
    let World {
        settings: _,
        pods,
        namespaces,
        service_accounts,
        nodes,
        services,
        endpoint_slices,
        service_cidrs,
        network_policies,
        identity_policies,
        cluster_identity_policies,
        cluster_configs,
        cached: _,
        mode_before: _,
    } = world;
    let mut objects: Vec<Object> = namespaces.values().cloned().map(Object::Namespace).collect();
    objects.extend(service_accounts.values().cloned().map(Object::ServiceAccount));
    objects.extend(nodes.values().cloned().map(Object::Node));
    objects.extend(pods.values().cloned().map(Object::Pod));
    objects.extend(services.values().cloned().map(Object::Service));
    objects.extend(endpoint_slices.values().cloned().map(Object::EndpointSlice));
    objects.extend(service_cidrs.values().cloned().map(Object::ServiceCidr));
    objects.extend(network_policies.values().cloned().map(Object::NetworkPolicy));
    objects.extend(identity_policies.values().cloned().map(Object::IdentityPolicy));
    objects.extend(cluster_identity_policies.values().cloned().map(Object::ClusterIdentityPolicy));
    objects.extend(cluster_configs.values().cloned().map(Object::ClusterConfig));
    objects
}

/// A world of these objects, with the settings of another.
pub fn world(objects: impl IntoIterator<Item = Object>, like: &World) -> World {
    let mut world = World { settings: like.settings.clone(), ..World::default() };
    for object in objects {
        world.apply(object);
    }
    world
}
