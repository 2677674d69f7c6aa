package podnet

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
)

// Many pods come and go at once, and nobody gets another's address.
func TestManyPodsAtOnce(t *testing.T) {
	links := &Memory{}
	open := func() *Network {
		n, err := Open(t.Context(), Config{
			PodCIDR: netip.MustParsePrefix("10.32.7.0/24"), ClusterCIDR: netip.MustParsePrefix("10.32.0.0/12"), Links: links,
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := open()
	var pods sync.WaitGroup
	for i := range 253 {
		pods.Go(func() {
			uid, netns := fmt.Sprint("pod-", i), fmt.Sprint("/netns/", i)
			ip, err := n.Attach(t.Context(), uid, netns)
			again, errAgain := n.Attach(t.Context(), uid, netns)
			if err != nil || errAgain != nil || again != ip {
				t.Errorf("%s: %s, %v; %s, %v", uid, ip, err, again, errAgain)
			}
			if i%2 == 0 {
				if err := n.Detach(t.Context(), uid); err != nil {
					t.Errorf("%s: %v", uid, err)
				}
			}
		})
	}
	pods.Wait()
	if left := n.Existing(); len(left) != 126 {
		t.Errorf("%d left", len(left))
	}
	if _, err := n.Attach(t.Context(), "one-more", "/netns/more"); !errors.Is(err, ErrExhausted) {
		t.Errorf("all addresses are used or released just now: %v", err)
	}
	if got := open().Existing(); len(got) != 126 {
		t.Errorf("adopted %d", len(got))
	}
}
