package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"shoal/consensus"
)

// foundedFile says that the founder has founded the store.
const foundedFile = "founded"

// foundStore founds the store if this peer founds the cluster, once: a founder whose store was lost later is a member like any other, and a
// second founding would make a second cluster of the same name.
func (p *Peer) foundStore(ctx context.Context) error {
	marker := filepath.Join(p.cfg.DataDir, foundedFile)
	_, err := os.Stat(marker)
	before := err == nil
	switch {
	case p.host.Founded():
	case before:
		p.log.Warn("the store of this peer is gone: it takes its shards from the other peers; if there are none, restore a backup", "folder", p.cfg.StoreDir())
		return nil
	case p.self.Founder:
		if err := p.host.Found(ctx); err != nil && !errors.Is(err, consensus.ErrAlreadyFounded) {
			return fmt.Errorf("founding the store: %w", err)
		}
	}
	if !p.self.Founder {
		return nil
	}
	if before {
		p.compareVoters(ctx)
		return nil
	}
	if err := p.chooseVoters(ctx); err != nil {
		return fmt.Errorf("founding the store: %w", err)
	}
	if err := os.WriteFile(marker, nil, 0o600); err != nil {
		return fmt.Errorf("founding the store: %w", err)
	}
	return nil
}

// chooseVoters writes down how many voters the founder was told to found the cluster with.
func (p *Peer) chooseVoters(ctx context.Context) error {
	if p.cfg.Voters == 0 {
		return nil
	}
	return retry(ctx, p.log, "write the number of voters down", func(ctx context.Context) error {
		return p.change(ctx, func(s *settings) { s.Voters = p.cfg.Voters })
	})
}

// compareVoters tells whoever starts a founder with --voters again that the cluster has another number by now.
func (p *Peer) compareVoters(ctx context.Context) {
	s, _, err := readSettings(ctx, p.host, consensus.Local)
	if err == nil && p.cfg.Voters != 0 && p.cfg.Voters != s.Voters {
		p.log.Warn("--voters counts only when the cluster is founded: change the number with `peer set voters`", "given", p.cfg.Voters, "voters", s.Voters)
	}
}
