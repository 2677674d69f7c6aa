package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"shoal/consensus"
	"shoal/peer/admin"
	"shoal/peer/backup"
)

// losses finds the shards without quorum, for `peer recover`. It needs no quorum and no API.
func (p *Peer) losses(ctx context.Context) ([]admin.Loss, error) {
	found, err := p.host.Losses(ctx)
	if err != nil {
		return nil, err
	}
	namespaces := p.namespacesPerShard(ctx)
	losses := make([]admin.Loss, 0, len(found))
	for _, l := range found {
		loss := admin.Loss{
			Shard: l.Shard, Missing: namesOf(l.Missing, p.nameFor), Namespaces: namespaces[l.Shard], Final: l.Final(),
		}
		for _, voter := range l.Voters {
			loss.Voters = append(loss.Voters, p.nameFor(voter.Peer))
		}
		slices.Sort(loss.Voters)
		for _, c := range l.Copies {
			described := admin.CopyStatus{
				Peer: p.nameFor(c.Peer), Here: c.Peer == p.self.ID, LastChange: c.Revision.Time(), Revision: uint64(c.Revision),
				Term: c.LastTerm, Index: c.LastIndex,
			}
			if c.LeaderSeen != 0 {
				described.LeaderSeen = time.UnixMilli(c.LeaderSeen)
			}
			loss.Copies = append(loss.Copies, described)
		}
		losses = append(losses, loss)
	}
	return losses, nil
}

// recover makes shards go on from the copies here, and starts the peer anew, because that is when it happens.
func (p *Peer) recover(ctx context.Context, shards []uint64, progress func(string)) error {
	if len(shards) == 0 {
		return errors.New("name the shards to recover")
	}
	slices.Sort(shards) // the meta shard first
	progress("exporting the copies here")
	if err := p.host.Recover(ctx, slices.Compact(shards)); err != nil {
		return fmt.Errorf("%w; nothing was changed", err)
	}
	progress("the peer restarts now; its pods run on, and the shards are back a few seconds later (peer status)")
	p.again.Store(true)
	p.shutDown() // the caller need not wait for the handing over
	return nil
}

// backup writes the whole cluster at one revision.
func (p *Peer) backup(ctx context.Context, passphrase string, to io.Writer) error {
	shards, at, err := p.host.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("a backup needs every shard: %w", err)
	}
	secrets, err := p.self.Cluster.MarshalJSON()
	if err != nil {
		return err
	}
	file, err := backup.NewWriter(to, passphrase, backup.Head{
		Cluster: p.self.Cluster.ID, Version: p.cfg.Version, At: at, Time: at.Time(), Shards: shards,
	}, secrets)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		if err := file.Shard(shard); err != nil {
			return err
		}
		if err := p.host.Export(ctx, shard, at, file.Keys); err != nil {
			if errors.Is(err, consensus.ErrCompacted) {
				err = fmt.Errorf("%w: so much was written meanwhile that the moment of the backup is no longer remembered; try again on a peer that holds more of the shards", err)
			}
			return err
		}
	}
	_, err = file.Close()
	return err
}

// hint enters the gossip through addresses that a user knows to be right now.
func (p *Peer) hint(ctx context.Context, addresses []string) error {
	var given []string
	for _, address := range addresses {
		address = withPort(address)
		if err := checkAddress(address); err != nil {
			return err
		}
		if err := p.self.CheckAddress(ctx, p.cfg.Machine.Dial, address); err != nil {
			return err
		}
		given = append(given, address)
	}
	seeds := resolveSeeds(ctx, given, p.log)
	if len(seeds) == 0 {
		return fmt.Errorf("none of %s can be resolved", strings.Join(addresses, ", "))
	}
	joining, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := p.members.Join(joining, seeds); err != nil {
		return fmt.Errorf("no peer answers there: %w", err)
	}
	return nil
}
