package controllers

import (
	"context"
	"time"

	"k8s.io/kubernetes/pkg/controller/volume/ephemeral"
	"k8s.io/kubernetes/pkg/controller/volume/persistentvolume"
)

// volumeResync is how often all claims and volumes are looked at again, as kube-controller-manager's default.
const volumeResync = 15 * time.Second

// volumeBinder binds claims to volumes and keeps the phases of both. It makes and deletes no volume itself: provisioners do, the peers' own
// among them.
func volumeBinder(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	core := e.informers.Core().V1()
	c, err := persistentvolume.NewController(ctx, persistentvolume.ControllerParameters{
		KubeClient: client, SyncPeriod: volumeResync, EnableDynamicProvisioning: true,
		VolumeInformer: core.PersistentVolumes(), ClaimInformer: core.PersistentVolumeClaims(), PodInformer: core.Pods(), NodeInformer: core.Nodes(),
		ClassInformer: e.informers.Storage().V1().StorageClasses(),
	})
	if err != nil {
		return nil, err
	}
	return c.Run, nil
}

// ephemeralClaims makes the claims of generic ephemeral volumes.
func ephemeralClaims(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := ephemeral.NewController(ctx, client, e.informers.Core().V1().Pods(), e.informers.Core().V1().PersistentVolumeClaims())
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}
