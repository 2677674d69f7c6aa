package controllers

import (
	"context"
	"errors"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/apis/core"
	kubeoptions "k8s.io/kubernetes/pkg/kubeapiserver/options"
	"k8s.io/kubernetes/pkg/registry/core/rangeallocation"
	portallocation "k8s.io/kubernetes/pkg/registry/core/service/portallocator/controller"
)

// brokenRegistry is a record of ports that cannot be read.
type brokenRegistry struct{ rangeallocation.RangeRegistry }

func (brokenRegistry) Get() (*core.RangeAllocation, error) { return nil, errors.New("no quorum") }

// TestARepairThatCannotReadEndsWithItsContext: upstream's tries for half a minute more, for which the end of a leadership, and of a peer,
// would wait.
func TestARepairThatCannotReadEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client := fake.NewClientset()
	ports := portallocation.NewRepair(repairPeriod, client.CoreV1(), client.EventsV1(), kubeoptions.DefaultServiceNodePortRange,
		endingRegistry{brokenRegistry{}, ctx})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		concurrently(untilDone(ports.RunUntil))(ctx)
	}()
	cancel()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}
