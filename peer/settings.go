package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"shoal/consensus"
	"shoal/consensus/store"
	"shoal/peer/admin"
)

// settingsRecord holds what users have set for the whole cluster; what is not in it has its default.
const settingsRecord = "/shoal/settings"

// settings are the cluster's, changeable while it runs (`peer set`).
type settings struct {
	// Voters is how many replicas of each shard vote where there are peers enough: 3 or 5.
	Voters int `json:"voters,omitempty"`
	// ReplaceAfter is how long a peer must be dead before its replicas are made anew elsewhere.
	ReplaceAfter time.Duration `json:"replaceAfter,omitempty"`
}

// The defaults, and the least that makes sense: below a few seconds a restart would move replicas.
const (
	defaultVoters       = 3
	defaultReplaceAfter = time.Minute
	leastReplaceAfter   = 5 * time.Second
)

// validVoters: two votes more than three bear a second failure, an even number bears no more than the odd one below it.
func validVoters(n int) bool { return n == 3 || n == 5 }

func (s settings) withDefaults() settings {
	if s.Voters == 0 {
		s.Voters = defaultVoters
	}
	if s.ReplaceAfter == 0 {
		s.ReplaceAfter = defaultReplaceAfter
	}
	return s
}

// readSettings also returns the record's revision, for a conditional write.
func readSettings(ctx context.Context, host *consensus.Host, level consensus.ReadLevel) (settings, store.Revision, error) {
	kv, found, _, err := host.Get(ctx, consensus.MetaShard, settingsRecord, level)
	if err != nil || !found {
		return settings{}.withDefaults(), 0, err
	}
	var s settings
	if err := json.Unmarshal(kv.Value, &s); err != nil {
		return settings{}.withDefaults(), 0, fmt.Errorf("record %s: %w", settingsRecord, err)
	}
	return s.withDefaults(), kv.Mod, nil
}

// The names under which users know the settings.
const (
	settingVoters       = "voters"
	settingReplaceAfter = "replace-after"
	settingDataShards   = "data-shards"
)

// listSettings is what `peer set` shows.
func (p *Peer) listSettings(ctx context.Context) ([]admin.Setting, error) {
	s, _, err := readSettings(ctx, p.host, consensus.Local)
	if err != nil {
		return nil, err
	}
	return []admin.Setting{
		{Name: settingVoters, Value: strconv.Itoa(s.Voters), Help: "Replicas of each shard that vote, where there are peers enough: 3 or 5."},
		{Name: settingReplaceAfter, Value: s.ReplaceAfter.String(), Help: "How long a peer must be dead before its replicas are made anew elsewhere."},
		{Name: settingDataShards, Value: strconv.Itoa(len(p.dataShards())), Help: "Shards that namespaces are spread over. It can only grow; existing namespaces stay where they are."},
	}, nil
}

// set changes a setting.
func (p *Peer) set(ctx context.Context, name, value string, progress func(string)) error {
	switch name {
	case settingVoters:
		n, err := strconv.Atoi(value)
		if err != nil || !validVoters(n) {
			return fmt.Errorf("%s must be 3 or 5, not %q", name, value)
		}
		return p.change(ctx, func(s *settings) { s.Voters = n })
	case settingReplaceAfter:
		d, err := time.ParseDuration(value)
		if err != nil || d < leastReplaceAfter {
			return fmt.Errorf("%s must be a duration of at least %s, such as 90s, not %q", name, leastReplaceAfter, value)
		}
		return p.change(ctx, func(s *settings) { s.ReplaceAfter = d })
	case settingDataShards:
		n, err := strconv.Atoi(value)
		if err != nil || n > store.MaxShard {
			return fmt.Errorf("%s must be a number up to %d, not %q", name, store.MaxShard, value)
		}
		return p.addShards(ctx, n, progress)
	default:
		return fmt.Errorf("there is no setting %q: %s, %s and %s can be set", name, settingVoters, settingReplaceAfter, settingDataShards)
	}
}

func (p *Peer) change(ctx context.Context, alter func(*settings)) error {
	for {
		s, at, err := readSettings(ctx, p.host, consensus.Linearizable)
		if err != nil {
			return err
		}
		alter(&s)
		value, err := json.Marshal(s)
		if err != nil {
			return err
		}
		result, err := p.host.Propose(ctx, consensus.MetaShard, store.Transaction{
			Conditions: []store.Condition{{Key: settingsRecord, Revision: at}},
			Ops:        []store.Op{{Key: settingsRecord, Value: value}},
		})
		if err != nil || result.OK {
			return err
		}
	}
}

// addShards makes data shards on this peer until there are n; the shard keeper then spreads them.
func (p *Peer) addShards(ctx context.Context, n int, progress func(string)) error {
	have := len(p.dataShards())
	if n < have {
		return fmt.Errorf("there are %d data shards already, and shards cannot be taken away: their namespaces would have to move", have)
	}
	for ; have < n; have++ {
		shard, err := p.host.AddShard(ctx)
		if err != nil {
			return err
		}
		progress(fmt.Sprintf("shard %d takes namespaces in a few seconds", shard))
	}
	return nil
}
