package peer

import (
	"context"
	"net/http"
	"sync"
)

// quarantinePath is where a peer tells, on serviceNode, which of its replicas are left stopped, and why.
const quarantinePath = "/quarantined"

// quarantineHandler answers with the reasons by shard.
func quarantineHandler(own func() map[uint64]string) http.HandlerFunc {
	return answerJSON(func(*http.Request, struct{}) (map[uint64]string, error) { return own(), nil })
}

// askQuarantined asks the named peers at once which of their replicas are left stopped, and returns the reasons by shard and peer. Who does
// not answer before ctx ends, or is of a version that does not know the question, has said nothing.
func askQuarantined(ctx context.Context, peers []string, nodes *nodeClient) map[uint64]map[string]string {
	found := map[uint64]map[string]string{}
	var lock sync.Mutex
	var all sync.WaitGroup
	for _, peer := range peers {
		all.Go(func() {
			var reasons map[uint64]string
			if nodes.post(ctx, peer, quarantinePath, struct{}{}, &reasons) != nil {
				return
			}
			lock.Lock()
			defer lock.Unlock()
			for shard, why := range reasons {
				if found[shard] == nil {
					found[shard] = map[string]string{}
				}
				found[shard][peer] = why
			}
		})
	}
	all.Wait()
	return found
}
