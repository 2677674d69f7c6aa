//go:build !linux

package logstore

import "github.com/lni/vfs"

func syncData(f vfs.File) error { return f.Sync() }

func preallocate(vfs.File, int64) error { return nil }
