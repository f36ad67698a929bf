"""What a client needs: wire form, client, webhook verification. No torch, no SQL."""
