package controllers

import (
	"context"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/scale"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
	resourceclient "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"
	"k8s.io/metrics/pkg/client/custom_metrics"
	"k8s.io/metrics/pkg/client/external_metrics"
)

// The times of autoscaling are kube-controller-manager's defaults; a HorizontalPodAutoscaler's behavior overrides the windows.
const (
	autoscalePeriod           = 15 * time.Second
	downscaleStabilisation    = 5 * time.Minute
	autoscaleTolerance        = 0.1
	cpuInitialisation         = 5 * time.Minute
	initialReadinessAllowance = 30 * time.Second
)

// autoscaler scales by the metrics API, which the peers serve themselves; custom and external metrics need somebody who serves those.
func autoscaler(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	config := e.config(name)
	scales, err := scale.NewForConfig(config, e.mapper, dynamic.LegacyAPIPathResolverFunc, scale.NewDiscoveryScaleKindResolver(client.Discovery()))
	if err != nil {
		return nil, err
	}
	resources, err := resourceclient.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	external, err := external_metrics.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	versions := custom_metrics.NewAvailableAPIsGetter(client.Discovery())
	c := podautoscaler.NewHorizontalController(ctx, client.CoreV1(), scales, client.AutoscalingV2(), e.mapper,
		metrics.NewRESTMetricsClient(resources, custom_metrics.NewForConfig(config, e.mapper, versions), external),
		e.informers.Autoscaling().V2().HorizontalPodAutoscalers(), e.informers.Core().V1().Pods(),
		autoscalePeriod, downscaleStabilisation, autoscaleTolerance, cpuInitialisation, initialReadinessAllowance)
	return concurrently(
		func(ctx context.Context) {
			custom_metrics.PeriodicallyInvalidate(versions, autoscalePeriod, ctx.Done())
		},
		func(ctx context.Context) { c.Run(ctx, workers) },
	), nil
}
