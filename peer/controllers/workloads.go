package controllers

import (
	"context"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/scale"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/kubernetes/pkg/controller/cronjob"
	"k8s.io/kubernetes/pkg/controller/daemon"
	"k8s.io/kubernetes/pkg/controller/disruption"
)

// workloads run only where package placement does not decide for these kinds.
var workloads = []named{
	{"daemon-set-controller", daemonSets},
	{"cronjob-controller", cronJobs},
	{"disruption-controller", disruptionBudgets},
}

func daemonSets(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	c, err := daemon.NewDaemonSetsController(ctx, e.informers.Apps().V1().DaemonSets(), e.informers.Apps().V1().ControllerRevisions(),
		e.informers.Core().V1().Pods(), e.informers.Core().V1().Nodes(), client, flowcontrol.NewBackOff(time.Second, 15*time.Minute))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) { c.Run(ctx, workers) }, nil
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
