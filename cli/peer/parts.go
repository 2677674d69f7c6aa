package main

import (
	"context"
	"io"
	"log/slog"
	"os"

	"shoal/cli"
	"shoal/peer"
	"shoal/runtime/pods"
)

// parts hands the peer to its command line.
func parts() cli.Parts { return cli.Parts{Join: join, Restore: restore} }

// restore begins a cluster anew from a backup.
func restore(ctx context.Context, flags cli.Restore, file io.ReadSeeker) error {
	return peer.Restore(ctx, file, peer.Restoring{
		DataDir: flags.DataDir, Name: flags.Name, Passphrase: flags.Passphrase, Progress: flags.Progress,
	})
}

// join runs a peer as the flags say.
func join(ctx context.Context, flags cli.Join) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(flags.LogLevel)); err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	go followLoad(ctx)
	return peer.Run(ctx, peer.Config{
		DataDir: flags.DataDir, Addresses: flags.Addresses, Token: flags.Token, Advertise: flags.Advertise, Name: flags.Name,
		ClusterCIDR: flags.ClusterCIDR, ServiceCIDR: flags.ServiceCIDR, Containerd: flags.Containerd,
		Listen: flags.Listen.IP, Port: flags.Listen.Port, Zone: flags.Zone, Labels: flags.Label, Voters: flags.Voters,
		CgroupParent: flags.CgroupParent, Version: flags.Version,
		HistoryBytes: int64(flags.HistoryBytes), HistoryAge: flags.HistoryAge, NoReadLeases: !flags.ReadLeases,
		Images: pods.ImageThresholds{High: flags.ImageGCHigh, Low: flags.ImageGCLow},
		Logger: logger,
	})
}
