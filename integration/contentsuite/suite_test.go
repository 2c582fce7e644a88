// Package contentsuite runs containerd's own suite for content stores on a content store behind a socket.
//
// SHOAL_CONTENT_SOCKET names the socket of a shoal-node with containerd.content = "plugin" and an empty store.
package contentsuite

import (
	"context"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestContent(t *testing.T) {
	socket := os.Getenv("SHOAL_CONTENT_SOCKET")
	if socket == "" {
		t.Fatal("SHOAL_CONTENT_SOCKET names no socket: lab runs this as a scene, content_plugin")
	}
	testsuite.ContentSuite(t, "shoal", func(ctx context.Context, _ string) (context.Context, content.Store, func() error, error) {
		connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return ctx, nil, nil, err
		}
		store := proxy.NewContentStore(connection)
		// Every case has other bytes, but may use the references of another: it begins with an empty store.
		empty := func() error {
			defer connection.Close()
			return clear(ctx, store)
		}
		return ctx, store, empty, nil
	})
}

func clear(ctx context.Context, store content.Store) error {
	statuses, err := store.ListStatuses(ctx)
	if err != nil {
		return err
	}
	for _, status := range statuses {
		if err := store.Abort(ctx, status.Ref); err != nil {
			return err
		}
	}
	return store.Walk(ctx, func(info content.Info) error { return store.Delete(ctx, info.Digest) })
}
