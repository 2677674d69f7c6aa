package controllers

import (
	"context"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/scale"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/disruption"
)

// workloads run only where package placement does not decide for these kinds.
var workloads = []named{
	{"cronjob-controller", cronJobs},
	{"disruption-controller", disruptionBudgets},
}

func cronJobs(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := cronjob.NewControllerV2(ctx, e.informers.Batch().V1().Jobs(), e.informers.Batch().V1().CronJobs(), client)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}

func disruptionBudgets(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	scales, err := scale.NewForConfig(e.config(name), e.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(client.Discovery()))
	if err != nil {
		return nil, err
	}
	core, apps := e.informers.Core().V1(), e.informers.Apps().V1()
	c := disruption.NewDisruptionController(ctx, core.Pods(), e.informers.Policy().V1().PodDisruptionBudgets(), core.ReplicationControllers(),
		apps.ReplicaSets(), apps.Deployments(), apps.StatefulSets(), client, e.mapper, scales, client.Discovery())
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
}
