package consensus

import (
	"fmt"
	"slices"
	"strings"
)

// missing lists the voters of a shard that are not believed alive, and how many
// voters it has in all, as this host knows them.
func (h *Host) missing(shard uint64) (gone []string, voters int) {
	alive := append(h.cfg.Peers(), h.cfg.PeerID)
	for _, m := range h.statusOf(shard).Replicas() {
		if !m.Voter {
			continue
		}
		voters++
		if !slices.Contains(alive, m.Peer) {
			gone = append(gone, m.Peer)
		}
	}
	return gone, voters
}

// noQuorum is ErrNoQuorum with the reason that a user can act on.
func (h *Host) noQuorum(shard uint64, cause error) error {
	gone, voters := h.missing(shard)
	if 2*(voters-len(gone)) > voters || voters == 0 {
		return shardError(shard, ErrNoQuorum, cause) // an election, or a partition that gossip does not see
	}
	names := make([]string, 0, len(gone))
	for _, peer := range gone {
		names = append(names, h.cfg.PeerName(peer))
	}
	slices.Sort(names)
	return shardError(shard, ErrNoQuorum,
		fmt.Errorf("%d of its %d voters are missing: %s: %w", len(gone), voters, strings.Join(names, ", "), cause))
}
