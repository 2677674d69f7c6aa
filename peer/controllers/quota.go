package controllers

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	quotav1 "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/kubernetes/pkg/controller"
	"k8s.io/kubernetes/pkg/controller/resourcequota"
	quotainstall "k8s.io/kubernetes/pkg/quota/v1/install"
)

const (
	// quotaPeriod is how often all quota is counted anew. A decision is charged before it is committed, and the charge of one that is refused
	// stays until then. Counting reads the informers' caches and writes only what differs.
	quotaPeriod = 15 * time.Second
	// quotaSettle is how long after its charge an object may take to be created and seen here. Who takes longer is not counted until the next
	// time.
	quotaSettle = 500 * time.Millisecond
	// quotaRounds is how often in a row a quota is counted that is charged meanwhile.
	quotaRounds = 10
	// quotaWorkers is how many quotas are counted at once: most of that is waiting.
	quotaWorkers = 32
)

func quota(ctx context.Context, e *environment, name string) (runner, error) {
	client, err := e.clientOf(name)
	if err != nil {
		return nil, err
	}
	configuration, err := quotainstall.NewQuotaConfigurationForControllers(generic.ListerFuncForResourceFunc(e.informers.ForResource), e.informers)
	if err != nil {
		return nil, err
	}
	discover, registry := client.Discovery().ServerPreferredNamespacedResources, generic.NewRegistry(configuration.Evaluators())
	quotas := e.informers.Core().V1().ResourceQuotas()
	c, err := resourcequota.NewController(ctx, &resourcequota.ControllerOptions{
		QuotaClient:               patientQuotas{client.CoreV1(), quotas.Lister(), registry},
		ResourceQuotaInformer:     quotas,
		ResyncPeriod:              controller.StaticResyncPeriodFunc(quotaPeriod),
		InformerFactory:           e.any,
		ReplenishmentResyncPeriod: controller.NoResyncPeriodFunc,
		DiscoveryFunc:             discover,
		IgnoredResourcesFunc:      configuration.IgnoredResources,
		InformersStarted:          e.started,
		Registry:                  registry,
		UpdateFilter:              quotainstall.DefaultUpdateFilter(),
	})
	if err != nil {
		return nil, err
	}
	return concurrently(
		func(ctx context.Context) { c.Run(ctx, quotaWorkers) },
		func(ctx context.Context) { c.Sync(ctx, discover, discoveryPeriod) },
	), nil
}

// patientQuotas is the client of upstream's quota controller. That one takes an object which is charged and not yet created, or not yet
// seen here, for absent, and by writing what it counted it takes the charge back: then a namespace gets more than its quota. So usage is
// lowered only by what is still too much once everything that was charged before can be seen.
type patientQuotas struct {
	typedcorev1.ResourceQuotasGetter
	lister   corelisters.ResourceQuotaLister
	registry quotav1.Registry
}

func (p patientQuotas) ResourceQuotas(namespace string) typedcorev1.ResourceQuotaInterface {
	return patientQuota{p.ResourceQuotasGetter.ResourceQuotas(namespace), p.lister.ResourceQuotas(namespace), p.registry}
}

type patientQuota struct {
	typedcorev1.ResourceQuotaInterface
	lister   corelisters.ResourceQuotaNamespaceLister
	registry quotav1.Registry
}

// UpdateStatus writes what was counted. Where that is less than what was charged, it waits and counts again; charges that come in
// meanwhile stay. While they come in it goes on, for quotaRounds at the most: an object may then have been counted beside its charge.
func (p patientQuota) UpdateStatus(ctx context.Context, counted *corev1.ResourceQuota, options metav1.UpdateOptions) (*corev1.ResourceQuota, error) {
	before, err := p.lister.Get(counted.Name)
	if err != nil || !lowers(before.Status.Used, counted.Status.Used) {
		return p.ResourceQuotaInterface.UpdateStatus(ctx, counted, options)
	}
	for range quotaRounds {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(quotaSettle):
		}
		now, err := p.lister.Get(counted.Name)
		if err != nil {
			return nil, err
		}
		status, err := p.count(before, now)
		if err != nil {
			return nil, err
		}
		exact := now.ResourceVersion == before.ResourceVersion
		if exact && quotav1.Equals(status.Used, now.Status.Used) {
			return now, nil // what was missing has appeared
		}
		before, counted = now, now.DeepCopy()
		counted.Status = status
		written, err := p.ResourceQuotaInterface.UpdateStatus(ctx, counted, options)
		switch {
		case errors.IsConflict(err): // it was charged again, so what has been seen of it is older than that
		case err != nil || exact:
			return written, err
		default:
			before = written
		}
	}
	return counted, nil
}

// count is the status of a quota by what the caches show, and what was charged since an earlier version of it.
func (p patientQuota) count(before, now *corev1.ResourceQuota) (corev1.ResourceQuotaStatus, error) {
	usage, err := quotav1.CalculateUsage(now.Namespace, now.Spec.Scopes, now.Spec.Hard, p.registry, now.Spec.ScopeSelector)
	if err != nil {
		return corev1.ResourceQuotaStatus{}, fmt.Errorf("counting quota %s of namespace %s: %w", now.Name, now.Namespace, err)
	}
	charged := quotav1.SubtractWithNonNegativeResult(now.Status.Used, before.Status.Used)
	used := quotav1.Add(corev1.ResourceList{}, now.Status.Used)
	for resource, amount := range usage {
		amount.Add(charged[resource])
		used[resource] = amount
	}
	hard := quotav1.Add(corev1.ResourceList{}, now.Spec.Hard)
	return corev1.ResourceQuotaStatus{Hard: hard, Used: quotav1.Mask(used, quotav1.ResourceNames(hard))}, nil
}

// lowers tells whether a count is below what was charged in any resource.
func lowers(charged, counted corev1.ResourceList) bool {
	for resource, amount := range counted {
		if was, ok := charged[resource]; ok && amount.Cmp(was) < 0 {
			return true
		}
	}
	return false
}
